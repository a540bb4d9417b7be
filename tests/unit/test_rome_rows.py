"""The rows of ROME: where the fact and the targets are, on the real tokenizer."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from easyedit_fast import EditRequest
from easyedit_fast.data import RequestTokenizer
from easyedit_fast.errors import RequestError
from easyedit_fast.rome.hparams import FactToken
from easyedit_fast.rome.rows import Rows, build_rows

TEMPLATES = ["{}", "Some day it rained. {}"]
REQUESTS = [
    EditRequest("The mother tongue of Danielle Darrieux is", "Danielle Darrieux", "English"),
    EditRequest("{} lies in the country of", "Qaqortoq", "Papua New Guinea"),
    EditRequest("Zürich 🎈, said Zürich, is", "Zürich", "Ljubljana"),
]


@pytest.fixture(scope="module")
def tokenizer(demo_model: Any) -> Any:
    return demo_model[1]


def rows_for(
    tokenizer: Any, requests: list[EditRequest], fact_token: FactToken, **options: Any
) -> Rows:
    return build_rows(
        RequestTokenizer.from_transformers(tokenizer),
        requests,
        TEMPLATES,
        fact_token,
        torch.device("cpu"),
        **options,
    )


@pytest.mark.parametrize(
    ("fact_token", "expected"),
    [
        ("subject_last", ["ux", "q", "rich"]),
        ("subject_first", [" Daniel", "Q", " Z"]),
        ("subject_first_after_last", [" is", " lies", ","]),
        ("last", [" is", " of", " is"]),
    ],
)
def test_the_fact_token(tokenizer: Any, fact_token: FactToken, expected: list[str]) -> None:
    rows = rows_for(tokenizer, REQUESTS, fact_token)
    for place, piece in enumerate(expected):
        row = int(rows.bare_row[place])
        found = tokenizer.decode(rows.input_ids[row, rows.fact_position[row]])
        assert found.endswith(piece) or found == piece.strip(), found


def test_targets_are_those_of_the_whole_text(tokenizer: Any) -> None:
    rows = rows_for(tokenizer, REQUESTS, "subject_last")
    for row in range(len(rows.request)):
        request = REQUESTS[int(rows.request[row])]
        mine = rows.target_row == row
        target = tokenizer.decode(rows.target_id[mine])
        if rows.is_essence[row]:
            assert not mine.any()
            assert rows.attention_mask[row].sum() == rows.fact_position[row] + 1
            continue
        template = TEMPLATES[row % (len(TEMPLATES) + 1)]
        text = template.replace("{}", request.prompt) + " " + request.target_new
        ids = tokenizer(text)["input_ids"]
        assert target.strip() == request.target_new
        positions = rows.target_position[mine].tolist()
        assert [ids[position + 1] for position in positions] == rows.target_id[mine].tolist()
        kept = int(rows.attention_mask[row].sum())
        assert rows.input_ids[row, :kept].tolist() == ids[:-1], "the last answer token is not run"


def test_some_rows_count_anew(tokenizer: Any) -> None:
    whole = rows_for(tokenizer, REQUESTS, "subject_last")
    kept = torch.tensor([3, 4, 5])
    part, alone = whole.select(kept), rows_for(tokenizer, REQUESTS[1:2], "subject_last")
    for name in (
        "fact_position",
        "request",
        "is_essence",
        "target_row",
        "target_position",
        "target_id",
        "bare_row",
    ):
        assert torch.equal(getattr(part, name), getattr(alone, name)), name


def test_a_fact_inside_the_target_is_refused(tokenizer: Any) -> None:
    request = EditRequest("I like {}", "Oslo", "very much")
    with pytest.raises(RequestError, match="record 1, field 'prompt'"):
        rows_for(tokenizer, [REQUESTS[0], request], "subject_first_after_last")


def test_a_request_longer_than_the_model_reads_is_refused(tokenizer: Any) -> None:
    long = EditRequest("{} lies " + "so very " * 20 + "far from", "Qaqortoq", "Rome")
    longest = int(rows_for(tokenizer, [long], "subject_last").attention_mask.sum(dim=1).max())
    rows_for(tokenizer, [REQUESTS[0], long], "subject_last", context=longest)
    with pytest.raises(RequestError, match=rf"record 1, field 'prompt': .*takes {longest} tokens"):
        rows_for(
            tokenizer,
            [REQUESTS[0], long],
            "subject_last",
            context=longest - 1,
        )


def test_a_text_that_is_no_unicode_names_its_request(tokenizer: Any) -> None:
    broken = ["{}", "\ud800 {}"]
    reader = RequestTokenizer.from_transformers(tokenizer)
    with pytest.raises(RequestError, match=r"^record 0[,:]"):
        build_rows(reader, REQUESTS, broken, "subject_last", torch.device("cpu"))


def test_rows_move_to_a_device_whole(tokenizer: Any) -> None:
    rows = rows_for(tokenizer, REQUESTS, "subject_last").to(torch.device("meta"))
    assert all(getattr(rows, field.name).is_meta for field in dataclasses.fields(rows))


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (EditRequest("A <image> of Zürich is", "Zürich", "Ljubljana"), "prompt"),
        (EditRequest("The twin of Zürich is", "Zürich", "<image>"), "target_new"),
        (EditRequest("The twin of <image> is", "<image>", "Ljubljana"), "prompt"),
    ],
)
def test_a_token_without_embedding_is_named(
    tokenizer: Any, request_: EditRequest, field: str
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["<image>"])
    unknown = {tokenizer.convert_tokens_to_ids("<image>"): "<image>"}
    with pytest.raises(
        RequestError, match=rf"record 1, field '{field}': holds '<image>' \(token 49152\), .* leave"
    ):
        rows_for(tokenizer, [REQUESTS[0], request_], "subject_last", unknown=unknown)
    rows_for(tokenizer, REQUESTS, "subject_last", unknown=unknown)
