"""Training a scope that is a cross-encoder: which pairs it reads, and which prompts it is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from easyedit_fast.serac.training_data import unfair_pairs
from tests.unit.test_mend_training import requests
from tests.unit.test_serac_training import both_kinds, no_questions, small, turned

__all__ = ["no_questions", "small"]  # fixtures

pytestmark = pytest.mark.usefixtures("one_thread", "no_questions")


@pytest.mark.parametrize("small", [True], indirect=True)
def test_a_cross_encoders_loss_is_that_of_each_prompt_with_its_own_edit_and_near_ones(
    small: Any,
) -> None:
    trainee = turned(small(parts="scope", hard_negatives=1, subject_negatives=1))
    scope = trainee.scope
    share = trainee.prepare(0, [3, 0, 5, 1])[0]
    edits = [trainee.data.requests[place] for place in share.places]
    known = scope.embed([edit.prompt for edit in edits])
    asked = [(at, text, at) for at, text in zip(share.own, share.inside, strict=True)]
    asked += [(at, text, None) for at, text in zip(share.own, share.outside, strict=True)]
    made = zip(share.own, share.others, strict=True)
    asked += [(at, text, None) for at, texts in made for text in texts]
    sums: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for kind, (own, text, wanted) in enumerate(asked):
        fair = ~unfair_pairs([text], edits)[0]
        fair[own] |= not 4 <= kind < 8  # a locality prompt may well be in its scope
        distances = (known - scope.embed([text])).square().sum(1)
        near = [at for at in distances.argsort().tolist() if fair[at] and at != own][:1]
        read = [*near, *([own] if fair[own] else [])]
        with torch.no_grad():
            scores = torch.stack([scope([edits[at].prompt], [text])[0] for at in read])
        right = len(read) if wanted is None else read.index(wanted)
        losses = -torch.cat([scores, torch.zeros(1)]).log_softmax(0)
        sums[wanted is None].append(losses[right])
    expected = sum(torch.stack(own).mean() for own in sums.values()) / 2
    torch.testing.assert_close(trainee.step((share, None))[0], expected, rtol=1e-4, atol=1e-5)


@both_kinds
def test_a_cross_encoder_is_asked_the_edits_own_prompts(small: Any) -> None:
    trainee = small(parts="scope")
    own = 0
    for iteration in range(100):
        share = trainee.prepare(iteration, [0, 1, 2, 3])[0]
        for place, text in enumerate(share.inside):
            assert text in (requests()[place].prompt, requests()[place].rephrase_prompt[0])
            own += text == requests()[place].prompt
    assert 70 <= own <= 130 if trainee.hparams.cross_attend else own == 0
