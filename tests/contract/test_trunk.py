"""The passes that share leads and leave padding out are held to the plain capture."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from easyedit_fast.models import ragged
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.shared_leads import Leads, find_leads
from easyedit_fast.models.tail import Tail
from easyedit_fast.models.trunk import capture_tails
from tests.contract.test_tail import Rows as PaddedRows
from tests.contract.test_tail import make_delta, make_rows, relative_error, shared_model
from tests.unit.tiny_models import FAMILIES, VOCABULARY

pytestmark = pytest.mark.usefixtures("one_thread")

# (lead, own tokens of the prefix, tokens of the tail): two leads that several rows share, rows that
# are all lead, rows without a lead, and an empty prefix.
SHAPES = ((0, 4, 3), (0, 1, 6), (0, 0, 2), (1, 5, 1), (1, 2, 4), (1, 0, 3), (2, 3, 2), (2, 0, 5))
LEADS = (7, 3, 0)


def rows_with_leads(padding: str) -> PaddedRows:
    generator = torch.Generator().manual_seed(4)

    def draw(length: int) -> Tensor:
        return torch.randint(3, VOCABULARY, (length,), generator=generator)

    leads = [draw(length) for length in LEADS]
    texts = [torch.cat([leads[lead], draw(own), draw(tail)]) for lead, own, tail in SHAPES]
    starts = [LEADS[lead] + own for lead, own, _ in SHAPES]
    width = max(map(len, texts))
    input_ids = torch.zeros(len(texts), width, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    start, places = [], []
    for row, (text, first) in enumerate(zip(texts, starts, strict=True)):
        offset = width - len(text) if padding == "left" else 0
        input_ids[row, offset : offset + len(text)] = text
        mask[row, offset : offset + len(text)] = 1
        start.append(offset + first)
        places += [(row, column) for column in range(offset + first, offset + len(text))]
    rows, columns = torch.tensor(places).unbind(1)
    return PaddedRows(input_ids, mask, torch.tensor(start), rows, columns)


def check(model: PreTrainedModel, layers: list[int], rows: PaddedRows) -> None:
    arguments = (model, architecture_of(model), layers)
    tokens = (rows.input_ids, rows.attention_mask, rows.start)
    plain = Tail.capture_layers(*arguments, *tokens)
    ours = capture_tails(*arguments, *tokens)
    delta = make_delta(model, rows).detach()
    assert list(ours) == layers
    for layer in layers:
        assert relative_error(ours[layer].key, plain[layer].key) < 1e-5
        assert relative_error(ours[layer].value, plain[layer].value) < 1e-5
        assert ours[layer].outputs == plain[layer].outputs
        assert ours[layer].prefix.keys() <= set(range(layer, 100))
        results = [tails[layer].logits(delta, rows.rows, rows.columns) for tails in (ours, plain)]
        assert relative_error(*results) < 1e-5


@pytest.mark.parametrize("cost", [0, 1000], ids=["groups", "one group"])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_leads_change_nothing(
    family: str, padding: str, cost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ragged._GROUP_COST, "cpu", cost)
    check(shared_model(family), [1, 2], rows_with_leads(padding))


@pytest.mark.parametrize("padding", ["left", "right", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_share_nothing(family: str, padding: str) -> None:
    check(shared_model(family), [3], make_rows(padding))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_no_row_has_a_prefix(family: str) -> None:
    rows = rows_with_leads("left")
    first = rows.attention_mask.argmax(dim=1)
    check(
        shared_model(family),
        [0, 2],
        PaddedRows(rows.input_ids, rows.attention_mask, first, rows.rows, rows.columns),
    )


def spared(leads: Leads) -> int:
    numbers = [leads.of_row.count(lead) for lead in range(len(leads.tokens))]
    return sum((n - 1) * len(t) for n, t in zip(numbers, leads.tokens, strict=True))


def common(rows: list[tuple[int, ...]]) -> int:
    """How many leading tokens all rows share."""
    return sum(all(row[: n + 1] == rows[0][: n + 1] for row in rows) for n in range(len(rows[0])))


def best_by_trying(rows: list[tuple[int, ...]]) -> int:
    """The most tokens that any way to cut the sorted rows into groups can spare."""
    best = 0
    for cuts in range(1 << max(len(rows) - 1, 0)):
        groups: list[list[tuple[int, ...]]] = [[]]
        for place, row in enumerate(sorted(rows)):
            groups[-1].append(row)
            if cuts >> place & 1:
                groups.append([])
        best = max(best, sum((len(g) - 1) * common(g) for g in groups if g))
    return best


@given(st.lists(st.lists(st.integers(0, 1), max_size=4).map(tuple), max_size=6))
def test_leads_are_the_best_ones_and_begin_their_rows(rows: list[tuple[int, ...]]) -> None:
    leads = find_leads(rows)
    for row, lead in zip(rows, leads.of_row, strict=True):
        assert lead == -1 or row[: len(leads.tokens[lead])] == leads.tokens[lead] != ()
    assert spared(leads) == best_by_trying(rows)
