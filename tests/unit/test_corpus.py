"""Corpora: the blocks hold the tokens of transformers, whatever the texts come from."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from easyedit_fast.data import Corpus, HubDataset, RequestTokenizer, TextFiles
from easyedit_fast.errors import DataFileError, MissingFileError, RequestError

TEXTS = ["The first text, of one line.", "Über ein zweites\nmit zwei Zeilen.", "", "Third. " * 60]


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in TEXTS))
    return path


@pytest.fixture
def tokenizer(demo_model: Any) -> Any:
    return demo_model[1]


def tokens_of(tokenizer: Any, texts: list[str]) -> list[int]:
    return [token for text in texts for token in tokenizer(text).input_ids]


def blocks_of(corpus: Corpus, tokenizer: Any, length: int = 16, rows: int = 3) -> list[Any]:
    own = RequestTokenizer.from_transformers(tokenizer)
    return list(corpus.blocks(own, block_length=length, rows=rows))


def flat(blocks: list[Any]) -> list[int]:
    return [int(token) for block in blocks for token in block.reshape(-1)]


def test_blocks_hold_all_tokens_in_order(jsonl: Path, tokenizer: Any) -> None:
    blocks = blocks_of(TextFiles.of(jsonl), tokenizer)
    assert flat(blocks) == tokens_of(tokenizer, TEXTS)
    assert all(block.dtype == np.int64 for block in blocks)
    shapes = [block.shape for block in blocks]
    assert set(shapes[:-2]) == {(3, 16)}
    assert shapes[-1][0] == 1
    assert shapes[-1][1] < 16


def test_a_dataset_gives_the_same_blocks(jsonl: Path, tokenizer: Any) -> None:
    from_files = blocks_of(TextFiles.of(jsonl), tokenizer)
    from_dataset = blocks_of(HubDataset(str(jsonl.parent)), tokenizer)
    assert flat(from_dataset) == flat(from_files)
    assert [block.shape for block in from_dataset] == [block.shape for block in from_files]


def test_plain_and_compressed_texts_follow_each_other(tmp_path: Path, tokenizer: Any) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt.gz"
    one.write_text(TEXTS[1])
    two.write_bytes(gzip.compress(TEXTS[3].encode()))
    corpus = TextFiles.of(one, two)
    assert flat(blocks_of(corpus, tokenizer)) == tokens_of(tokenizer, [TEXTS[1], TEXTS[3]])
    assert corpus.name == "one"


def test_both_files_of_wikitext_lose_no_token(shared_data: Path, tokenizer: Any) -> None:
    for name in ("valid.txt", "test.txt"):
        path = shared_data / "data" / "wikitext2" / name
        got = flat(blocks_of(TextFiles.of(path), tokenizer, length=512, rows=32))
        text = path.read_text()
        assert tokenizer.decode(got, clean_up_tokenization_spaces=False) == text
        # Pieces end with a line, where the tokenizer may cut otherwise than in the whole.
        assert abs(len(got) - len(tokens_of(tokenizer, [text]))) <= len(text) // 65536


def test_identities_tell_corpora_apart(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("a" * (3 << 20))
    first = TextFiles.of(path).identity()
    assert TextFiles.of(path).identity() == first
    path.write_text("a" * ((3 << 20) - 1) + "b")
    assert TextFiles.of(path).identity() != first
    assert TextFiles.of(path, field="body").identity() != TextFiles.of(path).identity()
    assert HubDataset("wikitext").identity() != HubDataset("wikitext", split="test").identity()
    json.dumps([first, HubDataset("wikitext").identity()])


def test_a_folder_that_holds_other_texts_is_another_dataset(jsonl: Path) -> None:
    before = HubDataset(str(jsonl.parent)).identity()
    assert HubDataset(str(jsonl.parent)).identity() == before
    jsonl.write_text(json.dumps({"text": "another"}) + "\n")
    assert HubDataset(str(jsonl.parent)).identity() != before


def test_a_row_without_text_is_named(tmp_path: Path) -> None:
    words = WordLevel({"a": 1, "</s>": 2}, unk_token="a")
    own = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="</s>")
    lines = [*[{"text": "a"}] * 300, {"text": None}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RequestError, match=r"record 300, field 'text': .* not NoneType .*dataset"):
        blocks_of(HubDataset(str(tmp_path)), own)


def test_what_cannot_be_read_is_named(tmp_path: Path, jsonl: Path, tokenizer: Any) -> None:
    with pytest.raises(MissingFileError, match=r"no text file '.*none.txt'"):
        TextFiles.of(tmp_path / "none.txt")
    with pytest.raises(DataFileError, match="name at least one"):
        TextFiles.of()
    with pytest.raises(RequestError, match=r"record 0, field 'body': is missing.*train.jsonl"):
        blocks_of(TextFiles.of(jsonl, field="body"), tokenizer)
    with pytest.raises(DataFileError, match=r"no column 'body'"):
        blocks_of(HubDataset(str(jsonl.parent), field="body"), tokenizer)
    with pytest.raises(DataFileError, match="cannot be loaded"):
        blocks_of(HubDataset(str(tmp_path / "nowhere")), tokenizer)
    other = tmp_path / "table.csv"
    other.write_text("a,b")
    with pytest.raises(DataFileError, match=r"neither .txt nor .jsonl"):
        blocks_of(TextFiles.of(other), tokenizer)
    with pytest.raises(ValueError, match="too short"):
        blocks_of(TextFiles.of(jsonl), tokenizer, length=0)


def test_reading_may_be_left_in_the_middle(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "long.txt"
    path.write_text("some words and a line's end\n" * 200_000)
    own = RequestTokenizer.from_transformers(tokenizer)
    blocks = iter(TextFiles.of(path).blocks(own, block_length=8, rows=1))
    assert next(blocks).shape == (1, 8)
    del blocks


def test_a_forked_child_lets_go_of_a_corpus_and_is_told_to_open_its_own(
    tmp_path: Path, tokenizer: Any
) -> None:
    files = tmp_path / "tokenizer.json", tmp_path / "long.txt"
    files[0].write_text(tokenizer.backend_tokenizer.to_str())
    files[1].write_text("some words and a line's end\n" * 200_000)
    script = textwrap.dedent("""
        import os, sys
        from easyedit_fast import _loader
        tokenizer = _loader.Tokenizer(open(sys.argv[1], encoding="utf-8").read())
        blocks = _loader.Corpus([sys.argv[2]], tokenizer, block_length=8, rows=1)
        next(blocks)
        child = os.fork()
        if child == 0:
            try:
                next(blocks)
            except ValueError as error:
                print(error, flush=True)
            del blocks
            print("let go", flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print(next(blocks).shape)
    """)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *map(str, files)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    message = "the files were opened before this process was forked; open them in it"
    assert done.stdout.splitlines() == [message, "let go", "(1, 8)"], done.stderr
