"""`RequestTokenizer`: buffers without a copy, the GIL, forks, caching, errors."""

import gc
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from easyedit_fast import _loader
from easyedit_fast.data import RequestTokenizer, native
from easyedit_fast.errors import ModelError, RequestError


def byte_tokenizer():
    """One token a byte, and the special token <eos>."""
    vocab = {
        token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    return tokenizer


@pytest.fixture
def fast():
    return PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token="<eos>")


@pytest.fixture
def ours(fast):
    return RequestTokenizer.from_transformers(fast)


TEXTS = ["Ann lives in Rome", "Émile 🗼 語"]
AROUND = ["$A", "$A <eos>", "<eos> $A", "<eos> $A <eos> <eos>"]
SPANS = [(0, 3), (6, 7)]


@pytest.mark.parametrize("around", AROUND)
def test_a_prompt_goes_on_after_its_own_last_token(fast, around):
    """What a text itself ends with stays, an EOS too; an empty one has what goes before all."""
    eos = fast.eos_token_id
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[("<eos>", eos)]
    )
    before, after = (part.count("<eos>") for part in around.split("$A"))
    tokenizer = RequestTokenizer.from_transformers(fast)
    texts = [*TEXTS, "Rome<eos>", "<eos>", ""]
    plain = [fast(text, add_special_tokens=False)["input_ids"] for text in texts]
    expected = [[*[eos] * before, *own] for own in plain]
    assert tokenizer.encode_prompts(texts) == expected
    assert tokenizer.added_after == after
    assert tokenizer.encode_prompts([]) == []
    batch = tokenizer.batch_prompts(texts)
    assert batch.lengths.tolist() == [len(own) for own in expected]
    for ids, mask, own in zip(batch.input_ids, batch.attention_mask, expected, strict=True):
        assert ids[mask == 1].tolist() == own
        assert mask.tolist() == sorted(mask)


@pytest.mark.parametrize("side", ["left", "right"])
def test_numpy_gets_the_buffers_themselves(side):
    tokenizer = _loader.Tokenizer(byte_tokenizer().to_str())
    batch = tokenizer.encode(TEXTS, subject_spans=SPANS, target_spans=SPANS, padding_side=side)
    names = {"input_ids", "attention_mask", "labels", "subject_last", "lengths"}
    assert set(batch.addresses) == names
    for name in names:
        array = getattr(batch, name)
        assert array.__array_interface__["data"] == (batch.addresses[name], False)
        assert array.dtype == np.int64
        assert array.flags.c_contiguous
        assert array.flags.writeable


def test_the_batch_of_the_package_hands_the_same_buffers_on(ours):
    batch = ours.encode(TEXTS)
    before = batch.input_ids.copy()
    for _ in range(3):
        ours.encode(TEXTS[::-1])
    gc.collect()
    np.testing.assert_array_equal(batch.input_ids, before)
    assert batch.labels is None
    assert batch.subject_last is None


def test_arrays_outlive_everything_else():
    lengths = _loader.Tokenizer(byte_tokenizer().to_str()).encode(["abc"] * 1000).lengths
    gc.collect()
    assert lengths.tolist() == [3] * 1000


def test_spans_count_characters(ours):
    batch = ours.encode(TEXTS, subject_spans=SPANS, target_spans=SPANS)
    assert batch.subject_last.tolist() == [2, 10]
    assert batch.lengths.tolist() == [17, 15]
    assert np.flatnonzero(batch.labels[1] != -100).tolist() == [7, 8, 9, 10]
    left = ours.encode(TEXTS, subject_spans=SPANS, target_spans=SPANS, padding_side="left")
    assert left.subject_last.tolist() == [2, 12]
    np.testing.assert_array_equal(left.input_ids[1, 2:], batch.input_ids[1, :-2])
    assert left.input_ids[1, :2].tolist() == [ours.pad_id] * 2


def test_no_rows_and_empty_rows(ours):
    assert ours.encode([]).input_ids.shape == (0, 0)
    assert ours.encode(["", ""]).input_ids.shape == (2, 0)
    batch = ours.encode(["", "a"])
    assert batch.attention_mask.tolist() == [[0], [1]]


@pytest.mark.parametrize(
    ("texts", "arguments", "message"),
    [
        (["a", "b\ud83d"], {}, "^record 1: the text is no valid Unicode"),
        (["a", 7], {}, "^record 1: must be a text"),
        (["ab"], {"subject_spans": [(0, 3)]}, "^record 0, field 'subject': span .0, 3. is not ins"),
        (
            ["ab"],
            {"target_spans": [(-1, 1)]},
            "^record 0, field 'target': span .-1, 1. is negative",
        ),
        (
            ["ab"],
            {"target_spans": [(1, 1)]},
            "^record 0, field 'target': span .1, 1. is not inside",
        ),
    ],
)
def test_a_bad_row_is_named(ours, texts, arguments, message):
    with pytest.raises(RequestError, match=message):
        ours.encode(texts, **arguments)


def test_wrong_arguments(ours):
    with pytest.raises(ValueError, match="there are 1 subject spans for 2 texts"):
        ours.encode(TEXTS, subject_spans=[(0, 1)])
    with pytest.raises(ValueError, match="it must be 'left' or 'right'"):
        ours.encode(TEXTS, padding_side="middle")


def test_taking_over_is_remembered_until_the_tokenizer_changes(fast):
    first = RequestTokenizer.from_transformers(fast)
    assert RequestTokenizer.from_transformers(fast) is first
    assert first.pad_id == fast.eos_token_id
    size = first.vocab_size
    fast.add_tokens(["lives"])
    second = RequestTokenizer.from_transformers(fast)
    assert second is not first
    assert second.vocab_size == size + 1
    assert second.encode(["Ann lives"]).lengths.tolist() == [len(fast("Ann lives")["input_ids"])]
    fast.pad_token = "lives"
    assert RequestTokenizer.from_transformers(fast).pad_id == fast.pad_token_id == size


def test_a_tokenizer_that_is_gone_is_forgotten():
    fast = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token="<eos>")
    ours = weakref.ref(RequestTokenizer.from_transformers(fast))
    del fast
    gc.collect()
    assert ours() is None


@pytest.mark.parametrize("split", [True, False])
def test_special_tokens_inside_a_text(split):
    fast = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), eos_token="<eos>", split_special_tokens=split
    )
    batch = RequestTokenizer.from_transformers(fast).encode(["a<eos>b"])
    assert batch.input_ids[0].tolist() == fast("a<eos>b")["input_ids"]
    assert batch.lengths.tolist() == [7 if split else 3]


def test_what_is_no_usable_tokenizer():
    with pytest.raises(ModelError, match="the tokenizer cannot be read"):
        RequestTokenizer(byte_tokenizer().to_str()[:-9], pad_id=0)
    with pytest.raises(ModelError, match="neither a pad nor an EOS token"):
        RequestTokenizer.from_transformers(
            PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer())
        )

    class SlowTokenizer:
        pad_token_id = 0

    with pytest.raises(ModelError, match="SlowTokenizer is a slow tokenizer"):
        RequestTokenizer.from_transformers(SlowTokenizer())


def count_during(work):
    """Runs `work` in a thread of its own; counts the turns that this thread gets meanwhile."""
    barrier = threading.Barrier(2)
    done = threading.Event()

    def run():
        barrier.wait(timeout=60)
        work()
        done.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    barrier.wait(timeout=60)
    turns, begin = 0, time.perf_counter()
    while not done.is_set():
        assert time.perf_counter() - begin < 120, "the loader did not come back"
        time.sleep(0.002)
        turns += 1
    thread.join(timeout=60)
    return turns


def test_encoding_lets_other_threads_run():
    tokenizer = _loader.Tokenizer(byte_tokenizer().to_str())
    text = "Ann lives in Rome. " * 10_000
    turns = count_during(lambda: tokenizer.encode([text] * 4))
    assert turns >= 3  # one at most where the GIL is held


def test_reading_lets_other_threads_run(tmp_path):
    path = tmp_path / "large.json"
    record = '{"prompt": "Ann lives in", "subject": "Ann", "target_new": "Rome", "notes": "%s"}'
    path.write_text("[" + ",".join([record % ("x" * 1_000_000)] * 150) + "]")
    arguments = {"format": "auto", "limit": None, "offset": 0, "on_error": "raise"}
    turns = count_during(lambda: native.read_records(path, **arguments))
    assert turns >= 3  # one at most where the GIL is held


def test_threads_that_encode_at_once_agree():
    tokenizer = _loader.Tokenizer(byte_tokenizer().to_str())
    texts = [f"Ann {number} 語" * (number % 7) for number in range(2000)]
    expected = tokenizer.encode(texts).input_ids
    barrier = threading.Barrier(4)
    results = []

    def work():
        barrier.wait(timeout=60)
        results.append(tokenizer.encode(texts).input_ids)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(results) == 4
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_a_forked_child_goes_on_without_the_pool(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(byte_tokenizer().to_str(), encoding="utf-8")
    script = textwrap.dedent("""
        import os, sys
        from easyedit_fast import _loader
        tokenizer = _loader.Tokenizer(open(sys.argv[1], encoding="utf-8").read())
        expected = tokenizer.encode(["Ann lives"] * 500).lengths.tolist()
        child = os.fork()
        if child == 0:
            os._exit(0 if tokenizer.encode(["Ann lives"] * 500).lengths.tolist() == expected else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "0", done.stderr
