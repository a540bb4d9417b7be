"""Words that an encoder does not know."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from easyedit_fast.errors import MissingPackageError
from easyedit_fast.serac.cross_encoder import CrossEncoder
from easyedit_fast.serac.hparams import SERACHparams
from easyedit_fast.serac.scope import Scope
from easyedit_fast.serac.spelling import spelled
from easyedit_fast.serac.trained import trained_scope
from tests.unit.serac_encoders import write_encoder

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = [
    ("საქართველო", "სომხეთი"),
    ("ኢትዮጵያ", "ኤርትራ"),
    ("😀", "💀"),
    ("∑", "∏"),
    ("මිල", "මල"),  # told apart by a mark alone, which the tokenizer strips
    ("ရိုး", "ရူး"),
    ("ปู", "ปี"),
    ("𒁉", "𒁝"),  # cuneiform signs, which have no form in other letters
    ("a" * 60 + "b" * 60, "a" * 60 + "c" * 60),
]


@pytest.fixture(scope="module")
def packaged() -> Scope:
    try:
        found = trained_scope()
    except MissingPackageError as error:
        pytest.skip(str(error))
    assert isinstance(found, Scope)
    return found


@pytest.mark.parametrize(("one", "other"), PAIRS)
@pytest.mark.parametrize("prompt", ["The capital of {} is", "The meaning of {} is"])
def test_subjects_that_the_encoder_does_not_know_are_told_apart(
    packaged: Scope, prompt: str, one: str, other: str
) -> None:
    unknown = packaged._tokenizer.unk_token
    assert unknown in packaged._tokenizer.tokenize(one)
    asked = prompt.replace("The", "What is the").replace(" is", "?")
    edits = [prompt.format(one)] * 4
    queries = [prompt.format(one), asked.format(one), prompt.format(other), asked.format(other)]
    own, reworded, *others = packaged.pair_similarities(edits, queries)
    assert min(own, reworded) > 0.9
    assert max(others) < 0.1
    assert packaged.reading(prompt.format(one)) != packaged.reading(prompt.format(other))


def test_a_text_keeps_all_that_is_known(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = ["é Perú, 💀!", "as it was", ""]
    assert spelled(tokenizer, texts) == ["e Peru, :skull:!", "as it was", ""]
    tokenizer.unk_token = None
    assert spelled(tokenizer, texts) == texts


def test_other_rows_of_a_batch_stay_as_they_were(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    keys = {"cls_name": str(tmp_path), "pooling": "mean"}
    scope = Scope(SERACHparams(**keys))
    alone, beside = scope.embed(["Peru is"]), scope.embed(["Perú is", "Peru is"])
    torch.testing.assert_close(beside, alone.expand(2, -1), rtol=0, atol=1e-6)
    pairs = CrossEncoder(SERACHparams(**keys, cross_attend=True))
    plain, spelt = pairs.pair_similarities(["Peru is"] * 2, ["Is Peru?", "Is Perú?"])
    assert plain == pytest.approx(spelt, abs=1e-6)
