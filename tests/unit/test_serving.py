"""Parts of the server that need no server: pieces of text, draws, tokens, sockets."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path
from typing import Any

import pydantic
import pytest
import tokenizers
import torch
import transformers

from easyedit_fast.errors import DataFileError, HparamsError, MissingFileError
from easyedit_fast.serving import schemas
from easyedit_fast.serving.errors import ApiError
from easyedit_fast.serving.guard import Guard
from easyedit_fast.serving.limits import Limits
from easyedit_fast.serving.memory import Turns
from easyedit_fast.serving.rows import Row, RowDraws, RowEnds, Sampling, Told
from easyedit_fast.serving.server import TOKEN_VARIABLE, listen, read_token
from easyedit_fast.serving.text import TextPieces

TEXT = " naïve 漢字 🤷🏽‍♀️ costs €5; नमस्ते, and more words than a window holds " * 3


def pieces(tokenizer: Any, text: str, stops: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    made = TextPieces(tokenizer, tokenizer("Say:")["input_ids"], stops)
    found = []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        found.append(made.add(token))
        if made.stopped:
            break
    return [*found, made.rest()], made.stopped


def test_pieces_are_the_text_and_cut_no_character(demo_model: Any) -> None:
    found, stopped = pieces(demo_model[1], TEXT)
    assert "".join(found) == TEXT
    assert not stopped
    assert "\ufffd" not in "".join(found)
    assert found.count("") > 10, "some tokens are parts of characters"


def test_a_character_that_never_comes_whole_is_left_out(demo_model: Any) -> None:
    tokenizer = demo_model[1]
    tokens = tokenizer("漢", add_special_tokens=False)["input_ids"]
    assert len(tokens) > 1
    made = TextPieces(tokenizer, [], ())
    assert made.add(tokens[0]) + made.rest() == ""


def test_pieces_end_before_the_first_stop_text(demo_model: Any) -> None:
    chosen = random.Random(0)
    for _ in range(50):
        start = chosen.randrange(len(TEXT) - 12)
        stops = (TEXT[start : start + chosen.randrange(1, 12)], "never there")
        found, stopped = pieces(demo_model[1], TEXT, stops)
        place = TEXT.find(stops[0])
        assert "".join(found) == TEXT[:place]
        assert stopped


def byte_tokenizer() -> Any:
    """Letters, and bytes for all else, as Llama 2's and Gemma's tokenizers have them."""
    letters = ["▁", *map(chr, range(33, 127))]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocabulary = {name: number for number, name in enumerate(names)}
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>")
    )
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    made.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@pytest.mark.parametrize("prompt", ["Say:", "Say: 🎉🎉", "漢字", "é" * 9])
@pytest.mark.parametrize("text", [" yes", "🎉" * 30 + " ok", TEXT, "漢" * 40, "x" * 29 + "🎉" * 12])
def test_pieces_of_bytes_are_the_text(prompt: str, text: str) -> None:
    tokenizer = byte_tokenizer()
    before, whole = (tokenizer(one)["input_ids"] for one in (prompt, prompt + text))
    made = TextPieces(tokenizer, before, ())
    found = [made.add(token) for token in whole[len(before) :]]
    assert "".join([*found, made.rest()]) == text


@pytest.fixture(params=["byte-level", "letters and bytes"])
def cutting(request: pytest.FixtureRequest, demo_model: Any) -> Any:
    """A tokenizer whose tokens may be parts of characters."""
    return demo_model[1] if request.param == "byte-level" else byte_tokenizer()


@pytest.mark.parametrize(
    "prompt", ["Say:", "abc \ufffd", "abc \ufffd漢\ufffd\ufffd", "\ufffd" * 20]
)
@pytest.mark.parametrize(
    "text", [" is bad", " x\ufffd", "\ufffd a \ufffd\ufffd b", "\ufffd漢" * 20]
)
def test_a_replacement_character_of_the_text_is_told(cutting: Any, prompt: str, text: str) -> None:
    """It is no sign of a character that has not come whole, which reads the same."""
    before, whole = (cutting(one)["input_ids"] for one in (prompt, prompt + text))
    assert whole[: len(before)] == before
    made = TextPieces(cutting, before, ())
    found = [made.add(token) for token in whole[len(before) :]]
    assert "".join([*found, made.rest()]) == text


@pytest.mark.parametrize("before", ["x", "\ufffd", "漢", "\ufffd漢"])
@pytest.mark.parametrize(
    "character", ["\x80", "\u0800", "\ud7ff", "\uffff", "\U00010000", "\U0010ffff"]
)
def test_any_cut_character_is_left_out(cutting: Any, before: str, character: str) -> None:
    start = cutting(before)["input_ids"]
    whole = cutting(before + character)["input_ids"]
    assert whole[: len(start)] == start
    for end in range(len(start), len(whole)):
        made = TextPieces(cutting, [], ())
        assert "".join([*map(made.add, whole[:end]), made.rest()]) == before


def draws(sampling: Sampling, logits: torch.Tensor, count: int) -> list[int]:
    row = Row([1], sampling, lambda _: None)
    steps = RowDraws([row])
    return [int(steps(torch.zeros(1, 1), logits[None].clone())[0].argmax()) for _ in range(count)]


def test_draws_have_the_probabilities_of_temperature_and_top_p() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    sampling = Sampling(1, temperature=0.7, top_p=0.9, seed=3)
    found = torch.tensor(draws(sampling, logits, 4000)).bincount(minlength=4) / 4000
    expected = (logits.double() / 0.7).softmax(0)  # 0.758, 0.182, 0.044, …: the first two are 0.94
    expected[2:] = 0
    expected /= expected.sum()
    deviation = (expected * (1 - expected) / 4000).sqrt()
    assert bool(((found - expected).abs() <= 4 * deviation).all())


@pytest.mark.parametrize("extreme", [{"temperature": 5e-324}, {"top_p": 5e-324}])
def test_extreme_settings_draw_the_likeliest(extreme: dict[str, float]) -> None:
    logits = torch.tensor([1.0, 3.0, -torch.inf, 2.0])
    assert draws(Sampling(1, **{"temperature": 1.0, **extreme}), logits, 5) == [1] * 5


def test_a_seed_gives_the_same_draws_whatever_the_other_rows_do() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(1, temperature=1.0, seed=7)
    alone = draws(sampling, logits, 20)
    rows = [
        Row([1], Sampling(1, temperature=2.0), lambda _: None),
        Row([1], sampling, lambda _: None),
        Row([1], Sampling(1), lambda _: None),
    ]
    steps = RowDraws(rows)
    together = [steps(torch.zeros(3, 1), logits.repeat(3, 1)) for _ in range(20)]
    assert [int(one[1].argmax()) for one in together] == alone
    assert all(torch.equal(one[2], logits) for one in together), "greedy rows stay as they are"
    assert draws(Sampling(1, temperature=1.0, seed=8), logits, 20) != alone


def test_rows_end_by_themselves(demo_model: Any) -> None:
    tokenizer = demo_model[1]
    news: list[Told] = []
    one, two = (Row([1], Sampling(size), news.append, size) for size in (1, 3))
    gone = Row([1], Sampling(3), news.append)
    gone.cancel()
    ends = RowEnds([one, two, gone], tokenizer, {0})
    word = tokenizer(" word", add_special_tokens=False)["input_ids"][0]
    assert ends(torch.tensor([[word]] * 3), None).tolist() == [True, False, True]
    assert ends(torch.tensor([[word], [0], [word]]), None).tolist() == [True, True, True]
    assert [(told.row, told.text, told.reason) for told in news] == [
        (one, " word", "length"),
        (two, " word", None),
        (two, "", "stop"),
    ]


def test_the_token_is_read_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN_VARIABLE, "spoken")
    assert read_token(None) == "spoken"
    monkeypatch.setenv(TOKEN_VARIABLE, "ended by a line\n")
    with pytest.raises(DataFileError, match=f"{TOKEN_VARIABLE} must hold one token"):
        read_token(None)
    monkeypatch.setenv(TOKEN_VARIABLE, "line\n")
    assert read_token(None) == "line"
    file = tmp_path / "token"
    with pytest.raises(MissingFileError, match="put the token there"):
        read_token(file)
    file.write_text("written\n")
    assert read_token(file) == "written"
    for bad in ("", "two words", "Łódź"):
        file.write_text(bad)
        with pytest.raises(DataFileError, match="must hold one token"):
            read_token(file)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_others_are_let_in_with_a_token_alone(host: str) -> None:
    with pytest.raises(HparamsError, match=r"lets other machines in.*--token-file"):
        listen(host, 0, has_token=False)


def test_sockets_that_cannot_be_opened() -> None:
    with (
        listen("127.0.0.1", 0, has_token=False) as taken,
        pytest.raises(HparamsError, match=r"cannot listen on 127\.0\.0\.1"),
    ):
        listen("127.0.0.1", taken.getsockname()[1], has_token=False)
    with pytest.raises(HparamsError, match="cannot be resolved"):
        listen("no such host", 0, has_token=True)


@pytest.mark.parametrize("host", ["localhost", "localhost:80", "127.0.0.1:1", "[::1]:1", "[::1]"])
def test_loopback_names_are_let_in_without_a_token(host: str) -> None:
    guard = Guard(None, limits=Limits(), token=None)  # type: ignore[arg-type]
    guard._admit({"headers": [(b"host", host.encode())]})
    for other in (f"{host}.evil.example", "evil.example", ""):
        with pytest.raises(ApiError, match="'Host'"):
            guard._admit({"headers": [(b"host", other.encode())]})


def answered(headers: dict[str, str], body: bytes) -> int:
    """The status by which a guard, or the app behind it, answers a body."""
    sent: list[Any] = []

    async def app(_: Any, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == body
        await send({"type": "http.response.start", "status": 200})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    given = {"host": "localhost", **headers}.items()
    pairs = [(name.encode(), value.encode()) for name, value in given]
    scope = {"type": "http", "path": "/v1/edits", "headers": pairs}
    asyncio.run(Guard(app, limits=Limits(), token=None)(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (None, 400),
        ("text/plain", 400),
        ("application/json-seq", 400),
        ("text/plain; application/json", 400),
        ("application/json", 200),
        ("Application/JSON ; charset=utf-8", 200),
    ],
)
def test_a_body_must_be_declared_as_json(kind: str | None, status: int) -> None:
    """Whatever FastAPI makes of others: web pages send those without asking."""
    headers = {} if kind is None else {"content-type": kind}
    assert answered(headers, b"{}") == status
    assert answered(headers, b"") == 200, "there is nothing to read"


def test_a_turn_goes_to_who_waits() -> None:
    turns, order = Turns(), []

    def other() -> None:
        with turns:
            order.append("other")

    thread = threading.Thread(target=other)
    with turns:
        thread.start()
        while not turns._next.locked():
            pass
    with turns:
        order.append("again")
    thread.join()
    assert order == ["other", "again"]


EDIT = {"prompt": "a b", "subject": "a", "target_new": "c"}
LONG: list[tuple[Any, Any]] = [
    (schemas.CompletionRequest, {"prompt": [1] * 5000 + ["a"]}),
    (schemas.CompletionRequest, {"prompt": [[]] * 5000}),
    (schemas.CompletionRequest, {"prompt": [[1.5] * 5000] * 5}),
    (schemas.ChatRequest, {"messages": [{}] * 5000}),
    (schemas.ChatRequest, {"messages": [{"role": "user", "content": [{}] * 5000}]}),
    (schemas.NewEdits, [{}] * 5000),
    (schemas.NewEdits, {**EDIT, "rephrase_prompt": [1] * 5000}),
    (schemas.NewEdits, {**EDIT, "locality": {"x": {"prompt": [1] * 5000}}}),
    (schemas.RouteRequest, {"prompts": [[]] * 5000}),
]


@pytest.mark.parametrize(("form", "body"), LONG)
def test_the_faults_of_a_long_list_are_not_all_looked_for(form: Any, body: Any) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        pydantic.TypeAdapter(form).validate_python(body)
    assert caught.value.error_count() < 10
