"""Caches of SERAC's model: edits follow their rows, and what cannot go on is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from easyedit_fast.errors import ModelError
from easyedit_fast.serac.arguments import CACHE
from tests.unit.test_serac_model import CLOSE, GREEDY, IN, LONG, OUT, Parts, tiny

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),  # PEFT, of GPT-2
]
TEXTS = [OUT, IN, LONG, "speak north"]
TIMES = 2


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen2"])
def parts(request: pytest.FixtureRequest) -> Parts:
    return tiny(request.param)


@torch.no_grad()
def begun(parts: Parts) -> tuple[Any, Tensor, Tensor, Tensor]:
    """A cache of the texts, their next tokens, the mask with these, and the logits at them."""
    ids, mask = parts.batch(TEXTS)
    first = parts.model(ids, attention_mask=mask, use_cache=True)
    new = first.logits[:, -1:].argmax(-1)
    mask = torch.cat([mask, torch.ones_like(new)], dim=1)
    cache = getattr(first, CACHE)
    expected = parts.model(new, attention_mask=mask, **{CACHE: copy.deepcopy(cache)}).logits
    return cache, new, mask, expected


CHANGES: dict[str, tuple[Callable[[Any], None], list[int]]] = {
    "reordered": (lambda one: one.reorder_cache(torch.tensor([3, 0, 1, 2])), [3, 0, 1, 2]),
    "one row twice": (lambda one: one.reorder_cache(torch.tensor([1, 1, 0, 3])), [1, 1, 0, 3]),
    "chosen": (lambda one: one.batch_select_indices(torch.tensor([3, 0])), [3, 0]),
    "without edits": (lambda one: one.batch_select_indices(torch.tensor([2])), [2]),
    "repeated": (
        lambda one: one.batch_repeat_interleave(TIMES),
        [row for row in range(len(TEXTS)) for _ in range(TIMES)],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_edits_follow_the_rows_of_a_cache(parts: Parts, change: str) -> None:
    cache, new, mask, expected = begun(parts)
    act, rows = CHANGES[change]
    assert isinstance(cache, DynamicCache)
    act(cache)
    with torch.no_grad():
        found = parts.model(new[rows], attention_mask=mask[rows], **{CACHE: cache}).logits
    torch.testing.assert_close(found, expected[rows], **CLOSE)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_of_a_cache_goes_its_own_way(parts: Parts, copied: Callable[[Any], Any]) -> None:
    cache, new, mask, expected = begun(parts)
    other, order = copied(cache), [1, 0, 3, 2]
    other.reorder_cache(torch.tensor(order))
    with torch.no_grad():
        for one, rows in ((cache, [0, 1, 2, 3]), (other, order)):
            found = parts.model(new[rows], attention_mask=mask[rows], **{CACHE: one}).logits
            torch.testing.assert_close(found, expected[rows], **CLOSE)


def test_a_cache_that_beams_left_can_be_reordered(parts: Parts) -> None:
    ids, mask = parts.batch([IN, OUT])
    options: dict[str, Any] = {"num_beams": TIMES, "return_dict_in_generate": True, **GREEDY}
    made = parts.model.generate(ids, attention_mask=mask, num_return_sequences=TIMES, **options)
    cache = getattr(made, CACHE)
    columns = ids.shape[1] + GREEDY["max_new_tokens"] - 1  # the last tokens were not read
    mask = torch.cat([mask, mask.new_ones(2, columns + 1 - ids.shape[1])], dim=1)
    rows = torch.tensor([3, 1, 2, 0])
    mask = mask.repeat_interleave(TIMES, 0)
    new = made.sequences[:, -1:]
    with torch.no_grad():
        expected = parts.model(new, attention_mask=mask, **{CACHE: copy.deepcopy(cache)}).logits
        cache.reorder_cache(rows)
        found = parts.model(new[rows], attention_mask=mask[rows], **{CACHE: cache}).logits
    torch.testing.assert_close(found, expected[rows], **CLOSE)


def test_a_pass_that_does_not_go_on_from_its_cache_is_refused(parts: Parts) -> None:
    cache, new, mask, _ = begun(parts)
    refused = pytest.raises(ModelError, match=r"cache has 4 rows and, without edits, \d+ columns")
    with refused:
        parts.model(new[:1], attention_mask=mask[:1], **{CACHE: cache})
    with refused:
        parts.model(new, attention_mask=mask[:, :-1], **{CACHE: cache})
    cache.reset()
    with pytest.raises(ModelError, match="cut back into its prompts"):
        parts.model(new, attention_mask=mask, **{CACHE: cache})


def test_a_cache_of_fixed_size_is_refused(parts: Parts) -> None:
    ids, mask = parts.batch([OUT, IN])
    fixed = StaticCache(config=parts.base.config, max_cache_len=64)
    with pytest.raises(ModelError, match="a cache of fixed size leaves out the edits"):
        parts.model(ids, attention_mask=mask, **{CACHE: fixed})
    with torch.no_grad():  # the base model's own is none of ours to refuse
        parts.model(ids[:1], attention_mask=mask[:1], **{CACHE: fixed})


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
def test_states_of_rows_in_scope_are_refused_in_further_passes(parts: Parts, name: str) -> None:
    cache, new, mask, _ = begun(parts)
    with pytest.raises(ModelError, match=f"are those of a longer one; leave {name} out"):
        parts.model(new, attention_mask=mask, **{CACHE: cache, name: True})


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (-1, "prompt_length is -1, and row 0 has"),
        (99, "prompt_length is 99, and row 0 has"),
        (torch.tensor([2, -3]), "prompt_length is -3, and row 1 has"),
        (torch.tensor([1, 2, 3]), "one for each of the 2 rows"),
        (2.5, "give a whole number"),
    ],
    ids=str,
)
def test_lengths_of_no_prompt_are_refused(parts: Parts, length: Any, message: str) -> None:
    ids, mask = parts.batch([OUT, IN])
    with pytest.raises(ModelError, match=message):
        parts.model(ids, attention_mask=mask, prompt_length=length)
    for most in (0, mask.sum(1)):  # none, and all
        parts.model(ids, attention_mask=mask, prompt_length=most)
