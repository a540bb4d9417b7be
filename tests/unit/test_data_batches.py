"""`read_batches`: the same rows as `read_requests` and `RequestTokenizer.encode` give."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from easyedit_fast.data import RequestTokenizer, read_batches, read_requests
from easyedit_fast.errors import DataFileError, MissingFileError, RequestError
from easyedit_fast.models.demo import demo_folder
from tests.unit.test_data_tokenizer import byte_tokenizer

RECORDS = [
    {
        "prompt": "The capital of {} is",
        "subject": "Kenya",
        "target_new": "Oslo",
        "rephrase_prompt": ["Kenya is governed from", "Who governs Kenya sits in"],
        "locality": {
            "neighborhood": {"prompt": ["Chad is governed from"], "ground_truth": ["N'Djamena"]},
            "other": {"prompt": ["Tea is", "Émile 🗼 is"], "ground_truth": [None, "語"]},
        },
        "portability": {"one_hop": {"prompt": "Kenya lies in", "ground_truth": "Norway"}},
    },
    {"prompt": "Tea grows in Ceylon", "subject": "Ceylon", "target_new": "jars"},
    {"prompt": "Wool is {}'s", "subject": "the sheep", "target_new": "b", "rephrase_prompt": "W"},
]


@pytest.fixture
def tokenizer():
    return RequestTokenizer(byte_tokenizer().to_str(), pad_id=7)


def written(tmp_path, records):
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def section_rows(requests, name):
    """Place of the record, prompt, answer and subject span of each row."""
    for place, request in enumerate(requests):
        if name == "rewrite":
            yield place, request.prompt, request.target_new, request.subject_span
        elif name == "rephrase":
            for prompt in request.rephrase_prompt:
                yield place, prompt, request.target_new, None
        else:
            for probes in getattr(request, name).values():
                for probe in probes:
                    yield place, probe.prompt, probe.ground_truth, None


def assert_same(section, rows, tokenizer, side):
    """The section's arrays are those of one call of `encode`, labels told row by row."""
    assert section.record.tolist() == [place for place, *_ in rows]
    whole = [prompt if answer is None else f"{prompt} {answer}" for _, prompt, answer, _ in rows]
    expected = tokenizer.encode(whole, padding_side=side)
    np.testing.assert_array_equal(section.tokens.input_ids, expected.input_ids)
    np.testing.assert_array_equal(section.tokens.attention_mask, expected.attention_mask)
    np.testing.assert_array_equal(section.tokens.lengths, expected.lengths)
    for number, (text, (_, prompt, answer, span)) in enumerate(zip(whole, rows, strict=True)):
        labels = section.tokens.labels[number]
        kept = section.tokens.attention_mask[number] == 1
        assert (labels[~kept] == -100).all()
        if answer is None:
            assert (labels == -100).all()
            continue
        alone = tokenizer.encode(
            [text],
            target_spans=[(len(prompt), len(text))],
            subject_spans=None if span is None else [span],
        )
        np.testing.assert_array_equal(labels[kept], alone.labels[0])
        if span is not None:
            shift = int(kept.argmax())
            assert section.tokens.subject_last[number] == alone.subject_last[0] + shift


def check(path, tokenizer, size, side="right", **reading):
    requests = read_requests(path, **reading)
    first = reading.get("offset", 0)
    batches = list(read_batches(path, tokenizer, batch_size=size, padding_side=side, **reading))
    assert len(batches) == -(-len(requests) // size)
    for number, batch in enumerate(batches):
        own = requests[number * size : (number + 1) * size]
        start = first + number * size
        assert batch.numbers.tolist() == list(range(start, start + len(own)))
        for name in ("rewrite", "rephrase", "locality", "portability"):
            rows = list(section_rows(own, name))
            assert_same(getattr(batch, name), rows, tokenizer, side)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_every_section_is_what_encode_gives(tmp_path, tokenizer, size, side):
    check(written(tmp_path, RECORDS), tokenizer, size, side)


def test_limit_and_offset(tmp_path, tokenizer):
    check(written(tmp_path, RECORDS * 3), tokenizer, 2, limit=5, offset=2)


@pytest.mark.parametrize(
    "name", ["counterfact/counterfact-val.json", "zsre/zsre_mend_eval_portability.json"]
)
def test_published_records_with_the_demo_models_tokenizer(shared_data, demo_model, name):
    fast = AutoTokenizer.from_pretrained(str(demo_folder()))
    tokenizer = RequestTokenizer.from_transformers(fast)
    path = shared_data / "data" / name
    check(path, tokenizer, 7, "left", limit=60)
    for batch in read_batches(path, tokenizer, batch_size=50):
        requests = read_requests(path, limit=len(batch.numbers), offset=int(batch.numbers[0]))
        texts = [f"{request.prompt} {request.target_new}" for request in requests]
        expected = fast(texts, padding=True, padding_side="right")
        np.testing.assert_array_equal(batch.rewrite.tokens.input_ids, expected["input_ids"])


def test_words_met_before_give_the_ids_of_transformers(shared_data, demo_model):
    fast = AutoTokenizer.from_pretrained(str(demo_folder()))
    tokenizer = RequestTokenizer.from_transformers(fast)
    text = (shared_data / "data/wikitext2/valid.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line][:800]
    for _ in range(2):
        batch = tokenizer.encode(lines)
        for row, length, line in zip(batch.input_ids, batch.lengths, lines, strict=True):
            assert row[:length].tolist() == fast(line)["input_ids"]


def test_a_bad_record_is_named(tmp_path, tokenizer):
    path = written(tmp_path, [*RECORDS, {"prompt": "a", "subject": "b", "target_new": "c"}])
    with pytest.raises(RequestError, match=r"subject 'b' is not in the prompt") as error:
        read_batches(path, tokenizer, batch_size=2)
    assert (error.value.record, error.value.field) == (3, "subject")


def test_bad_files_and_numbers_are_refused(tmp_path, tokenizer):
    path = written(tmp_path, RECORDS)
    with pytest.raises(MissingFileError):
        read_batches(tmp_path / "none.json", tokenizer, batch_size=2)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, not 0"):
        read_batches(path, tokenizer, batch_size=0)
    with pytest.raises(ValueError, match="offset must be 0 or more, not -1"):
        read_batches(path, tokenizer, batch_size=1, offset=-1)
    path.write_text("[{")
    with pytest.raises(DataFileError):
        read_batches(path, tokenizer, batch_size=2)


def test_batches_that_nobody_takes_are_dropped(tmp_path, tokenizer):
    path = written(tmp_path, RECORDS * 500)
    batches = read_batches(path, tokenizer, batch_size=1)
    assert next(batches).numbers.tolist() == [0]
    del batches  # waits for the thread
