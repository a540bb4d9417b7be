"""The editor network by itself."""

from __future__ import annotations

import pytest
import torch

from easyedit_fast.mend.hparams import MENDHyperParams
from easyedit_fast.mend.network import EditorNetwork

SIZES = {"a.weight": (6, 4), "b.weight": (6, 4)}


@pytest.mark.parametrize("init", ["id", "xavier"])
def test_an_untrained_network_learns(init: str) -> None:
    """An identity begins where relu has no gradient."""
    hparams = MENDHyperParams(inner_params=list(SIZES), rank=3, init=init, edit_lr=0.1)
    network = EditorNetwork(hparams, SIZES).train()
    generator = torch.Generator().manual_seed(0)
    factors = {
        name: (torch.randn(5, 6, generator=generator), torch.randn(5, 4, generator=generator))
        for name in SIZES
    }
    made = network(factors)
    sum(side.square().sum() for pair in made.values() for side in pair).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        if name.endswith((".u", ".bias", "edit_lrs")):
            assert parameter.grad.abs().max() > 0, name
