"""SERAC on base models in half precision, spread by a device map, and on one or more threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor
from transformers import PreTrainedModel

from easyedit_fast import Editor
from easyedit_fast.errors import MissingPackageError
from easyedit_fast.models.loading import load_model
from tests.contract.test_methods import REQUESTS

FACT = REQUESTS[0]
OUT = "The opposite of hot is"
LONGER = "Snow that falls in winter is usually"
DTYPES = (torch.bfloat16, torch.float16)


def loaded(**options: Any) -> tuple[PreTrainedModel, Any]:
    try:
        return load_model("demo", **{"device": "cpu", **options})
    except MissingPackageError as error:
        pytest.skip(str(error))


def serac_on(model: PreTrainedModel, tokenizer: Any) -> Editor:
    """With an edit in its memory."""
    try:
        made = Editor(model, tokenizer, method="serac")
    except MissingPackageError as error:
        pytest.skip(str(error))
    made.edit(FACT, evaluate=False)
    return made


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def batch(tokenizer: Any) -> dict[str, Tensor]:
    texts = [OUT, FACT.prompt, LONGER]
    found: Any = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    return dict(found)


def assert_base_rows(model: Any, plain: Any, tokenizer: Any) -> None:
    """Rows 0 and 2 are those of a model that never held an adapter, and row 1 is not."""
    own = batch(tokenizer)
    with torch.no_grad():
        logits, expected = model(**own).logits, plain(**own).logits
    assert logits.dtype == expected.dtype == plain.dtype
    assert torch.equal(logits[[0, 2]], expected[[0, 2]])
    assert not torch.equal(logits[1], expected[1])
    alone = {name: own[name][[0, 2]] for name in own}
    options: dict[str, Any] = {
        "max_new_tokens": 4,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    found, wanted = (one.generate(**alone, **options) for one in (model, plain))
    assert all(map(torch.equal, found.logits, wanted.logits))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_base_model_in_half_precision(dtype: torch.dtype) -> None:
    plain, tokenizer = loaded(dtype=dtype)
    base, _ = loaded(dtype=dtype)
    weights = {name: one.clone() for name, one in base.named_parameters()}
    editor = serac_on(base, tokenizer)
    try:
        model: Any = editor.model
        adapter = editor.method._adapter.parameters()
        assert len(adapter) > 0
        assert {one.dtype for one in adapter} == {torch.float32}
        assert model.dtype == base.dtype == dtype
        assert_base_rows(model, plain, tokenizer)
        ids = batch(tokenizer)
        texts = tokenizer.batch_decode(
            model.generate(**ids, max_new_tokens=3, do_sample=False)[:, ids["input_ids"].shape[1] :]
        )
        assert texts[1].split()[0].startswith("Rome")
        summary = editor.edit(REQUESTS[1]).summary
        assert summary["post"]["rewrite_acc"]["mean"] == 1.0
    finally:
        editor.method.close()
    assert {name: one.dtype for name, one in base.named_parameters()} == dict.fromkeys(
        weights, dtype
    )
    assert all(torch.equal(one, weights[name]) for name, one in base.named_parameters())


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 2])
def test_base_rows_on_one_or_more_threads(demo_model: Any, count: int) -> None:
    torch.set_num_threads(count)
    base, tokenizer = loaded()
    editor = serac_on(base, tokenizer)
    assert_base_rows(editor.model, demo_model[0], tokenizer)
    editor.method.close()


def test_a_model_spread_by_a_device_map(demo_model: Any) -> None:
    """All its devices are the CPU here; the hooks that move what enters a layer are there."""
    base, tokenizer = loaded()
    parts = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
    layers = [f"model.layers.{layer}" for layer in range(len(base.model.layers))]
    dispatch_model(base, dict.fromkeys([*parts, *layers], "cpu"), force_hooks=True)
    hooked = [name for name, part in base.named_modules() if hasattr(part, "_hf_hook")]
    assert "model.layers.0" in hooked
    with torch.no_grad():
        before = base(**batch(tokenizer)).logits
    editor = serac_on(base, tokenizer)
    assert editor.model.hf_device_map == base.hf_device_map
    assert_base_rows(editor.model, demo_model[0], tokenizer)
    assert editor.edit(REQUESTS[1]).summary["post"]["rewrite_acc"]["mean"] == 1.0
    editor.method.close()
    assert hooked == [name for name, part in base.named_modules() if hasattr(part, "_hf_hook")]
    with torch.no_grad():
        assert torch.equal(base(**batch(tokenizer)).logits, before)
