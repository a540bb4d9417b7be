"""The server, asked by OpenAI's client and over plain HTTP."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
import transformers

from easyedit_fast import read_requests
from easyedit_fast.models.loading import load_model
from easyedit_fast.serving.limits import Limits
from tests.end_to_end.servers import client, edit, serving, untrained_editor

UNRELATED = "Water boils at a temperature of"
LIMITS = Limits(
    body_bytes=100_000, prompt_tokens=400, prompts=8, edits=50, edit_tokens=60, max_tokens=300, n=3,
    requests=12, batch_rows=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_editor(tmp_path_factory.mktemp("serac"))


@pytest.fixture(scope="module")
def plain() -> Any:
    """A model of its own for second ways to an answer: the server's is used by its thread."""
    return load_model("demo", device="cpu")


@pytest.fixture(scope="module")
def small(demo_model: Any) -> Any:
    """A random model that takes little time, with the demo model's tokenizer."""
    tokenizer = demo_model[1]
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval(), tokenizer


@pytest.fixture(scope="module")
def url(demo_model: Any, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the edits 0 to 2."""
    memory = tmp_path_factory.mktemp("memory") / "edits.sqlite"
    with serving(demo_model, archive, memory, LIMITS) as address:
        added = httpx.post(f"{address}/v1/edits", json=[edit(number) for number in range(3)])
        assert [one["id"] for one in added.json()["data"]] == [1, 2, 3]
        yield address


def greedy(plain: Any, text: str, count: int, **options: Any) -> str:
    """The base model's own answer."""
    model, tokenizer = plain
    ids = tokenizer(text, return_tensors="pt", **options)
    with torch.no_grad():
        made = model.generate(**ids, max_new_tokens=count, do_sample=False)
    return str(tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


def test_prompts_of_a_batch_go_their_ways(url: str, plain: Any) -> None:
    answer = client(url).completions.create(
        model="demo", prompt=[edit(1)["prompt"], UNRELATED], max_tokens=6, temperature=0
    )
    inside, outside = answer.choices
    assert inside.edit == 2  # type: ignore[attr-defined]
    assert inside.similarity > 0.9  # type: ignore[attr-defined]
    context = f"{edit(1)['prompt']} {edit(1)['target_new']}\n{edit(1)['prompt']}"
    assert inside.text == greedy(plain, context, 6)
    assert outside.edit is None  # type: ignore[attr-defined]
    assert outside.text == greedy(plain, UNRELATED, 6)
    assert answer.usage
    assert answer.usage.completion_tokens == 12
    tokens = [plain[1](text)["input_ids"] for text in (edit(1)["prompt"], UNRELATED)]
    assert answer.usage.prompt_tokens == sum(map(len, tokens))
    assert outside.finish_reason == "length"
    by_tokens = client(url).completions.create(
        model="demo", prompt=tokens, max_tokens=6, temperature=0
    )
    assert [one.text for one in by_tokens.choices] == [inside.text, outside.text]
    alone = client(url).completions.create(
        model="demo", prompt=tokens[1], max_tokens=6, temperature=0, echo=True
    )
    assert alone.choices[0].text == UNRELATED + outside.text


def test_a_stream_goes_through_proxies(url: str) -> None:
    asked = {"prompt": "Once", "max_tokens": 1, "stream": True}
    headers = httpx.post(f"{url}/v1/completions", json=asked).headers
    assert headers["content-type"].startswith("text/event-stream")
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")


def test_a_stream_is_the_whole_answer(url: str) -> None:
    asked: dict[str, Any] = {
        "model": "demo", "prompt": ["A story about 漢字 and 🤷:", edit(0)["prompt"]],
        "max_tokens": 20, "temperature": 1.3, "seed": 5, "n": 2, "top_p": 0.95,
    }  # fmt: skip
    whole = client(url).completions.create(**asked)
    texts, reasons, usage = ["" for _ in range(4)], {}, None
    for piece in client(url).completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ):
        usage = piece.usage or usage
        for choice in piece.choices:
            assert "\ufffd" not in choice.text
            assert choice.edit == (None if choice.index < 2 else 1)
            texts[choice.index] += choice.text
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage
    assert len(set(texts[:2])) == 2, "answers to one prompt are drawn apart"


def test_chats(url: str, plain: Any) -> None:
    tokenizer = plain[1]
    messages: list[Any] = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Say hello."}]},
    ]
    whole = client(url).chat.completions.create(
        model="demo", messages=messages, max_tokens=12, temperature=0
    )
    asked = [messages[0], {"role": "user", "content": "Say hello."}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert whole.choices[0].message.content == greedy(plain, text, 12)
    assert whole.choices[0].edit is None  # type: ignore[attr-defined]
    stream = client(url).chat.completions.create(
        model="demo", messages=messages, max_tokens=12, temperature=0, stream=True
    )
    deltas = [choice.delta for piece in stream for choice in piece.choices]
    assert deltas[0].role == "assistant"
    assert "".join(one.content or "" for one in deltas) == whole.choices[0].message.content
    messages = [{"role": "user", "content": edit(2)["prompt"]}]
    answer = client(url).chat.completions.create(
        model="demo", messages=messages, max_completion_tokens=2
    )
    assert answer.choices[0].edit == 3  # type: ignore[attr-defined]


def test_an_answer_goes_back_as_the_client_has_it(url: str) -> None:
    """With all the fields that it does not have, as null; and with what is the default."""
    question = {"role": "user", "content": "Say hello."}
    asked: dict[str, Any] = {
        "model": "demo", "max_tokens": 3, "temperature": 0, "response_format": {"type": "text"},
    }  # fmt: skip
    chats = client(url).chat.completions
    reply = chats.create(messages=[question], **asked).choices[0].message
    again = chats.create(messages=[question, reply.model_dump(), question], **asked)
    plain = {"role": "assistant", "content": reply.content}
    assert again.choices == chats.create(messages=[question, plain, question], **asked).choices
    assert "tool_calls" in reply.model_dump()


def test_a_developer_is_the_system_under_another_name(url: str) -> None:
    def answer(role: str) -> Any:
        messages: list[Any] = [
            {"role": role, "content": "Speak like a pirate."},
            {"role": "user", "content": "Say hello."},
        ]
        return client(url).chat.completions.create(
            model="demo", messages=messages, max_tokens=5, temperature=0
        )

    developer, system = answer("developer"), answer("system")
    assert developer.usage == system.usage
    assert developer.choices == system.choices


def test_stop_texts_end_an_answer(url: str, plain: Any) -> None:
    text = greedy(plain, UNRELATED, 30)
    stop = text[20:23]
    answer = client(url).completions.create(
        model="demo", prompt=UNRELATED, max_tokens=30, temperature=0, stop=[stop, "§§"]
    )
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_models_and_health(url: str) -> None:
    assert [model.id for model in client(url).models.list()] == ["demo"]
    assert client(url).models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client(url).models.retrieve("other")
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}


def test_edits_are_listed_found_exported_and_removed(url: str, tmp_path: Path) -> None:
    with httpx.Client(base_url=url) as http:
        (added,) = http.post("/v1/edits", json={**edit(9), "case_id": 9}).json()["data"]
        last = added["id"]
        assert http.get(f"/v1/edits/{last}").json() == added
        page = http.get("/v1/edits", params={"limit": 2, "after": 1}).json()
        assert [one["id"] for one in page["data"]] == [2, 3]
        assert page["has_more"]
        page = http.get("/v1/edits", params={"after": 3}).json()
        assert page["data"] == [added]
        assert not page["has_more"]
        asked = {"prompt": edit(9)["prompt"], "limit": 2}
        found = http.post("/v1/edits/search", json=asked).json()["data"]
        assert found[0]["id"] == last
        assert found[0]["similarity"] > found[1]["similarity"]
        routed = http.post("/v1/route", json={"prompts": [edit(9)["prompt"], UNRELATED]}).json()
        assert [one["edit"] for one in routed["data"]] == [last, None]
        (tmp_path / "edits.jsonl").write_text(http.get("/v1/edits/export").text)
        assert read_requests(tmp_path / "edits.jsonl")[-1].target_new == "Town 9"
        assert http.delete(f"/v1/edits/{last}").json()["deleted"] is True
        assert http.delete(f"/v1/edits/{last}").status_code == 404
        gone = http.get(f"/v1/edits/{last}")
        assert gone.status_code == 404
        assert "is not in the memory" in gone.json()["error"]["message"]


def test_of_two_edits_of_a_prompt_the_first_is_told_to_hold_no_more(url: str) -> None:
    pair = [edit(9), {**edit(9), "target_new": "Town 10"}]
    with httpx.Client(base_url=url) as http:
        first, second = http.post("/v1/edits", json=pair).json()["data"]
        assert (first["superseded_by"], second["superseded_by"]) == (second["id"], None)
        http.delete(f"/v1/edits/{second['id']}")
        assert http.get(f"/v1/edits/{first['id']}").json()["superseded_by"] is None
        http.delete(f"/v1/edits/{first['id']}")


BAD: list[tuple[str, Any, str, str]] = [
    ("/v1/completions", {"prompt": []}, "prompt", "not empty"),
    ("/v1/completions", {"prompt": "a", "max_tokens": 301}, "max_tokens", "more than 300"),
    ("/v1/completions", {"prompt": "a", "n": 4}, "n", "more than 3"),
    ("/v1/completions", {"prompt": ["a"] * 9}, "prompt", "9 prompts is more than 8"),
    ("/v1/completions", {"prompt": "a " * 500}, "prompt", "tokens, and 400 are the most"),
    ("/v1/completions", {"prompt": [10**6]}, "prompt", "no token 1000000"),
    ("/v1/completions", {"prompt": "a", "stop": list("abcde")}, "stop", "at most 4"),
    ("/v1/completions", {"prompt": "a", "logprobs": 1}, "logprobs", "not supported"),
    ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
    ("/v1/completions", {"prompt": "a", "best_of": 2}, "best_of", "not supported"),
    ("/v1/completions", {"prompt": "a", "presence_penalty": 1}, "presence_penalty", "not supp"),
    ("/v1/completions", {"prompt": "a", "frequency_penalty": 1}, "frequency_penalty", "not supp"),
    ("/v1/completions", {"prompt": "a", "grammar": "x"}, "grammar", "not known"),
    ("/v1/chat/completions", {"messages": []}, "messages", "at least 1 item"),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "assistant", "content": "a", "tool_calls": []}]},
        "messages",
        "field 'messages.0.tool_calls': is not known",
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": None}]},
        "messages",
        "valid",
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "tool", "content": "a"}]},
        "messages",
        "should",
    ),
    *(
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a"}], "response_format": form},
            "response_format",
            "must be {'type': 'text'}",
        )
        for form in (
            {"type": "json_object"},
            {"type": "json_schema", "json_schema": {}},
            {},
            "text",
        )
    ),
    ("/v1/edits", [edit(0), {"prompt": "a b", "subject": "a"}], "target_new", "record 1, field"),
    ("/v1/edits", [edit(0), {**edit(1), "subject": "Oz"}], "subject", "record 1, field 'subject'"),
    ("/v1/edits", [edit(0)] * 51, "edits", "51 edits are more than 50"),
    ("/v1/edits", {**edit(0), "target_new": "a " * 60}, "prompt", "60 are let in"),
    ("/v1/edits/search", {"prompt": "a", "limit": 51}, "limit", "more than 50"),
    ("/v1/edits", {**edit(0), "prompt": 5}, "prompt", "should be a valid string"),
    ("/v1/edits", {**edit(0), "locality": {"x": 5}}, "locality", "x': must be a JSON object"),
    ("/v1/edits", {**edit(0), "locality": {"\ud800": {"prompt": "a"}}}, "locality", "surrogate"),
    ("/v1/completions", {"prompt": "a\ud800"}, "prompt", "half of a surrogate pair"),
    ("/v1/route", {"prompts": ["a"] * 9}, "prompts", "9 prompts are more than 8"),
    ("/v1/route", {"prompts": ["a", 5]}, "prompts", "texts, token ids or conversations"),
    ("/v1/route", {"prompts": [[10**6]]}, "prompts", "no token 1000000"),
    ("/v1/route", {"prompts": ["a " * 500]}, "prompts", "tokens, and 400 are the most"),
]


@pytest.mark.parametrize(("path", "body", "param", "message"), BAD)
def test_what_cannot_be_used_is_named(
    url: str, path: str, body: Any, param: str, message: str
) -> None:
    headers = {"content-type": "application/json"}  # httpx would not send half of a pair
    answer = httpx.post(f"{url}{path}", content=json.dumps(body), headers=headers)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 500
    count = len(httpx.get(f"{url}/v1/edits").json()["data"])
    assert count == 3, "all or none"


def test_routes_are_those_of_the_answers(url: str, plain: Any) -> None:
    tokenizer = plain[1]

    def chat(*texts: str) -> list[dict[str, str]]:
        roles = ["system", *["user", "assistant"] * len(texts)]
        return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]

    asked, other = edit(1)["prompt"], edit(2)["prompt"]
    chats = [
        (chat("Be short.", asked), 2),
        (chat("Be short.", other, "In Rome.", asked), 2),
        (chat("Be short.", asked, "In Rome.", UNRELATED), None),
        (chat(asked, UNRELATED), None),
        ([{"role": "user", "content": [{"type": "text", "text": other}]}], 3),
    ]
    texts = [
        str(tokenizer.apply_chat_template(chat("Be short.", asked), tokenize=False,
                                          add_generation_prompt=True)),
        f"  {asked}  ", UNRELATED,
    ]  # fmt: skip
    prompts: list[Any] = [*texts, tokenizer(other)["input_ids"]]
    answers = [
        client(url).completions.create(model="demo", prompt=one, max_tokens=1) for one in prompts
    ]
    expected = [2, 2, None, 3]
    for messages, edit_id in chats:
        more: Any = client(url).chat.completions.create(
            model="demo",
            messages=messages,
            max_tokens=1,  # type: ignore[arg-type]
        )
        prompts, answers, expected = [*prompts, messages], [*answers, more], [*expected, edit_id]
    routes = [
        route
        for part in (prompts[:6], prompts[6:])
        for route in httpx.post(f"{url}/v1/route", json={"prompts": part}).json()["data"]
    ]
    assert [route["edit"] for route in routes] == expected
    choices: list[Any] = [answer.choices[0] for answer in answers]
    assert [route["edit"] for route in routes] == [choice.edit for choice in choices]
    similarities = [choice.similarity for choice in choices]
    assert [route["similarity"] for route in routes] == pytest.approx(similarities, abs=1e-4)


def test_a_body_of_many_faults_gets_a_short_answer(url: str) -> None:
    unknown = {f"field{number}": 1 for number in range(5000)}
    for path, body in (
        ("/v1/completions", {"prompt": "a", **unknown}),
        ("/v1/edits", [{}] * 20_000),
        ("/v1/edits", {**edit(0), "locality": unknown}),
    ):
        answer = httpx.post(f"{url}{path}", json=body)
        assert answer.status_code == 400
        assert len(answer.content) < 600
    assert "and 4995 more" in answer.json()["error"]["message"]


def test_prompts_are_routed_while_many_edits_are_added(
    small: Any, archive: Path, tmp_path: Path
) -> None:
    with serving(small, archive, tmp_path / "edits.sqlite") as address:
        httpx.post(f"{address}/v1/edits", json=edit(0))
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=address, timeout=60) as http:
            body = [edit(100 + number) for number in range(400)]
            adding = pool.submit(http.post, "/v1/edits", json=body, timeout=120)
            between = -1  # one may have come before the edits
            while not adding.done():
                asked = {"prompt": edit(0)["prompt"], "max_tokens": 1}
                answer = httpx.post(f"{address}/v1/completions", json=asked, timeout=60).json()
                assert answer["choices"][0]["edit"] == 1
                between += not adding.done()
            ids = [one["id"] for one in adding.result().json()["data"]]
        assert ids == list(range(2, 402))
        assert between >= 3


def test_an_export_that_fails_has_a_status(small: Any, archive: Path, tmp_path: Path) -> None:
    memory = tmp_path / "edits.sqlite"
    with serving(small, archive, memory) as address:
        httpx.post(f"{address}/v1/edits", json=edit(0))
        with contextlib.closing(sqlite3.connect(memory)) as other, other:
            other.execute("INSERT INTO edits SELECT 2, added, encoder, '{', embedding FROM edits")
        answer = httpx.get(f"{address}/v1/edits/export")
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")


def test_bodies_are_limited_and_of_json(url: str) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(5):
            yield b" " * 30_000

    for body in (b" " * 100_001, parts()):
        answer = httpx.post(f"{url}/v1/edits", content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    answer = httpx.post(f"{url}/v1/edits", content=b"{")
    assert answer.status_code == 400
    told = httpx.post(f"{url}/v1/edits", content=json.dumps(edit(0)))  # a web page can send this
    assert told.status_code == 400
    assert "content-type" in told.json()["error"]["message"]
    assert httpx.get(f"{url}/v1/models", headers={"Host": "evil.example"}).status_code == 403
    assert httpx.put(f"{url}/v1/models").json()["error"]["message"].startswith("method not allowed")


def test_more_requests_than_the_limit_are_told_to_wait(url: str) -> None:
    own = client(url)

    def ask(_: int) -> tuple[int, str]:
        try:
            own.completions.create(model="demo", prompt="Once", max_tokens=20)
        except openai.RateLimitError as error:
            return error.status_code, error.response.headers["retry-after"]
        return 200, ""

    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(ask, range(24)))
    assert set(found) == {(200, ""), (429, "1")}
    assert ask(0) == (200, "")


def seconds_of_a_token(url: str) -> float:
    began = time.monotonic()
    client(url).completions.create(model="demo", prompt="One", max_tokens=1)
    return time.monotonic() - began


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(url: str, stream: bool) -> None:
    body = {"prompt": ["Once upon a time"] * 2, "max_tokens": 50, "temperature": 1.5}
    began = time.monotonic()
    with httpx.Client(base_url=url) as http:
        if stream:
            with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/completions", json=body, timeout=0.5)
    seconds_of_a_token(url)
    gone = time.monotonic() - began
    began = time.monotonic()
    assert httpx.post(f"{url}/v1/completions", json=body, timeout=120).status_code == 200
    assert gone < (time.monotonic() - began) / 2


def test_a_token_is_asked_for(demo_model: Any, archive: Path) -> None:
    with serving(demo_model, archive, None, token="right") as address:
        assert client(address, "right").models.list().data
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic right"}):
            answer = httpx.get(f"{address}/v1/models", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client(address, "wrong").models.list()
        assert httpx.get(f"{address}/openapi.json").status_code == 401
        assert httpx.get(f"{address}/health").status_code == 200


def load(url: str, requests: int, edits: int) -> None:
    """Clients ask while edits are added; each prompt goes where its edit is, once it is there."""
    ids: dict[int, int] = {}
    wrong: list[str] = []
    lock = threading.Lock()

    asking_client, http = client(url, timeout=120), httpx.Client(base_url=url, timeout=120)

    def ask(number: int) -> None:
        with lock:
            known = [*ids.items()]
        if number % 4 == 0 or not known:
            prompt, expected = UNRELATED, None
        else:
            added, expected = known[number % len(known)]
            prompt = edit(added)["prompt"]
        answer = asking_client.completions.create(
            model="demo", prompt=prompt, max_tokens=1 + number % 3, temperature=number % 2
        )
        if answer.choices[0].edit != expected:  # type: ignore[attr-defined]
            wrong.append(f"{prompt}: {answer.choices[0]}")

    def add(number: int) -> None:
        answer = http.post("/v1/edits", json=edit(number))
        with lock:
            ids[number] = answer.json()["data"][0]["id"]

    with http, asking_client, ThreadPoolExecutor(8) as asking, ThreadPoolExecutor(2) as adding:
        added = [adding.submit(add, 100 + number) for number in range(edits)]
        asked = [asking.submit(ask, number) for number in range(requests)]
        for one in [*added, *asked]:
            one.result()
        lines = http.get("/v1/edits/export").text.splitlines()
        for number, id_ in ids.items():
            assert http.get(f"/v1/edits/{id_}").json()["target_new"] == f"Town {number}"
    assert not wrong
    assert len(lines) == edits


@pytest.mark.parametrize(
    ("requests", "edits"), [(200, 40), pytest.param(1000, 300, marks=pytest.mark.slow)]
)
def test_no_edit_is_lost_and_no_route_is_wrong_under_load(
    small: Any, archive: Path, tmp_path: Path, requests: int, edits: int
) -> None:
    with serving(small, archive, tmp_path / "edits.sqlite") as address:
        load(address, requests, edits)
