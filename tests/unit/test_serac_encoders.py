"""Sentence encoders of several kinds as a scope's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from easyedit_fast.serac.cross_encoder import CrossEncoder
from easyedit_fast.serac.hparams import SERACHparams
from easyedit_fast.serac.scope import Scope
from tests.unit.serac_encoders import write_encoder

pytestmark = pytest.mark.usefixtures("one_thread")

_BERT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "DistilBertConfig": (
        "AutoModel",
        {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 40},
    ),
    "RobertaConfig": ("AutoModel", {**_BERT, "max_position_embeddings": 40}),
    "MPNetConfig": (
        "AutoModel",
        {**_BERT, "max_position_embeddings": 40},
    ),
    "ModernBertConfig": ("AutoModel", {**_BERT, "cls_token_id": 2, "sep_token_id": 3}),
    "T5Config": (
        "T5EncoderModel",
        {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4},
    ),
}


@pytest.fixture(params=_KINDS)
def encoder(request: Any, tmp_path: Path) -> dict[str, str]:
    """The keys that name a small random encoder of some kind."""
    write_encoder(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    class_name, keys = _KINDS[request.param]
    config = getattr(transformers, request.param)(
        vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None, **keys
    )
    torch.manual_seed(0)
    made = getattr(transformers, class_name)
    model = made.from_config(config) if class_name == "AutoModel" else made(config)
    model.save_pretrained(tmp_path)
    return {"cls_name": str(tmp_path), "cls_class": class_name}


@pytest.mark.parametrize("keys", [{"cls_rank": 4}, {"cls_rank": 4, "freeze": 1}, {"freeze": 1}])
def test_a_scope_of_any_encoder_embeds_and_learns(encoder: Any, keys: dict[str, int]) -> None:
    own: dict[str, Any] = {"cls_rank": None, **keys, **encoder, "pooling": "mean"}
    scope = Scope(SERACHparams(**own))
    prompts = ["The mother tongue of Ada is", "Ada", "a long one " * 80]
    together = scope.embed(prompts)
    for row, prompt in zip(together, prompts, strict=True):
        torch.testing.assert_close(row, scope.embed([prompt])[0], rtol=1e-4, atol=1e-5)
    rows = scope(prompts)
    scope.scores(rows[:1], rows[1:])[0, 0].backward()
    learned = [one for one in scope.encoder.parameters() if one.requires_grad]
    assert learned
    assert any(one.grad is not None and one.grad.abs().sum() > 0 for one in learned)
    restored = Scope(SERACHparams(**own))
    restored.load_trained_state(scope.trained_state())
    assert restored.fingerprint == scope.fingerprint


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pads_are_no_part_of_an_embedding(tmp_path: Path, pooling: str) -> None:
    """Whatever the side on which the encoder's tokenizer would put them."""
    write_encoder(tmp_path, padding_side="left")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).padding_side == "left"
    scope = Scope(SERACHparams(cls_name=str(tmp_path), pooling=pooling), trained=False)
    together = scope.embed(["Peru", "a longer prompt, beside which the other is padded"])
    torch.testing.assert_close(together[0], scope.embed(["Peru"])[0], rtol=1e-4, atol=1e-5)


def test_a_cross_encoder_of_any_encoder_reads_pairs_and_learns(encoder: Any) -> None:
    own: dict[str, Any] = {"cls_rank": 4, "cross_attend": True, **encoder, "pooling": "mean"}
    scope = CrossEncoder(SERACHparams(**own))
    edits = ["The mother tongue of Ada is", "Ada", "a long one " * 80]
    queries = ["Ada speaks " * 40, "Ada", "a long one " * 79 + "that ends otherwise"]
    together = scope(edits, queries)
    for score, edit, query in zip(together, edits, queries, strict=True):
        torch.testing.assert_close(score, scope([edit], [query])[0], rtol=1e-3, atol=1e-5)
        assert score != scope([query], ["Ada is"])[0]
    together.sum().backward()
    learned = [one for one in scope.encoder.parameters() if one.requires_grad]
    assert any(one.grad is not None and one.grad.abs().sum() > 0 for one in learned)
    restored = CrossEncoder(SERACHparams(**own))
    restored.load_trained_state(scope.trained_state())
    assert restored.pair_similarities(edits, queries) == scope.pair_similarities(edits, queries)
