r"""Many edits in one model: one solve for all, one after the other, and MEMIT's least squares.

    python benchmarks/rome_together.py --data counterfact-edit.json \
        --second-moment second_moment.npz --sizes 10 100 1000

The three ways share the values v* = v + δ, the keys, the layer and the second moment, so that they
differ in the solve alone. With keys k̄ (means over the context templates) in the columns of K, and
the δ in those of R:

- together: every equality Δ k̄ = δ at once (`rome.solve`).
- one by one: each request's own closed form in the model that holds the ones before it, towards
  the same v*.
- MEMIT: Δ = R Kᵀ (λ C + K Kᵀ)⁻¹, with λ its ``mom2_update_weight`` (Meng et al. 2022, arXiv
  2210.07229, equations 14 and 15). MEMIT itself spreads an edit over several layers; here it has
  one, as the others have.

Records that share a prompt and differ in the target cannot hold in one model. They are left out,
whatever the size.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import report
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from easyedit_fast import Editor, EditRequest, read_requests
from easyedit_fast.data import RequestTokenizer
from easyedit_fast.evaluation import Evaluator, merge
from easyedit_fast.metrics import mean_interval, record_scores
from easyedit_fast.models.architectures import edited_module, edited_weight
from easyedit_fast.models.tracing import frozen, watch_input
from easyedit_fast.moments import SecondMoment, SecondMomentFactor, read_second_moment
from easyedit_fast.rome.solve import solve_update
from easyedit_fast.updates import LowRankUpdate

_CHUNK = 96  # requests whose values are computed between two writes of the file
_ROWS = 64  # texts in a forward pass
_ORIGIN = ("data", "model", "preset", "layer", "second_moment")
_SCORES = {
    "rewrite": ("rewrite_acc",),
    "rephrase": ("rephrase_acc",),
    "locality": ("locality", "neighborhood_acc"),
}


@dataclasses.dataclass(frozen=True)
class _Values:
    """What the three solves share; the first dimension is the request.

    Attributes:
        deltas: δ, [n, d_out] float32.
        bare: Keys of the prompts, [n, d_in].
        mean: Keys k̄, means over the context templates, [n, d_in].
    """

    deltas: Tensor
    bare: Tensor
    mean: Tensor

    def first(self, count: int) -> _Values:
        """Those of the first requests."""
        return _Values(self.deltas[:count], self.bare[:count], self.mean[:count])


@dataclasses.dataclass(frozen=True)
class _Solved:
    """An update, and the condition number where it is known."""

    update: LowRankUpdate
    condition: float | None = None


def main() -> None:
    """Parses the options, solves and scores, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--second-moment", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--preset", default="default", choices=("default", "fast"))
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument(
        "--mom2-update-weight", type=float, nargs="+", default=[15000.0], help="MEMIT's λ"
    )
    parser.add_argument("--values", type=Path, help="file that keeps v* between runs")
    parser.add_argument("--generate", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    editor = Editor.from_pretrained(
        options.model,
        preset=options.preset,
        hparams={"layers": [options.layer], "second_moment": str(options.second_moment)},
        device="cpu",
        dtype="float32",
    )
    requests, left_out = _consistent(read_requests(options.data))
    requests = requests[: max(options.sizes)]
    start = time.perf_counter()
    values = _values(editor, requests, options)
    seconds = (time.perf_counter() - start) / len(requests)
    bench = _Bench(editor, options.layer, requests, values, options.generate)
    moment = read_second_moment(options.second_moment)
    factor = moment.factorise()
    ways: dict[str, Callable[[_Values], _Solved]] = {
        "together": lambda part: bench.together(part, factor),
        "one by one": lambda part: bench.one_by_one(part, factor),
        **{
            f"MEMIT, λ = {weight:g}": lambda part, weight=weight: bench.memit(part, moment, weight)
            for weight in options.mom2_update_weight
        },
    }
    rows = [bench.row(name, solve, size) for size in options.sizes for name, solve in ways.items()]
    kinds = ("teacher-forced", "generated") if options.generate else ("teacher-forced",)
    report.write(
        "rome_together",
        "Many edits in one model",
        f"python benchmarks/rome_together.py --data {options.data.name} --second-moment … "
        f"--sizes {' '.join(map(str, options.sizes))}",
        [
            "edits",
            "way",
            "solve, s",
            "target missed by",
            "‖Δ‖ / ‖W‖",
            "condition",
            *(f"{name}, {kind}" for name in _SCORES for kind in kinds),
        ],
        rows,
        [
            (
                f"Layer {options.layer}, preset {options.preset}, all scores on the final model, "
                "means with 95 % intervals. v* of all requests is shared; it took "
                f"{seconds:.2f} s an edit{' (or was read from a file)' if options.values else ''}. "
                "'Target missed by' is the median of ‖Δ k̄ − δ‖ / ‖δ‖. MEMIT has one layer here."
            ),
            "",
            (
                f"Left out, for each shares its prompt with another of another target: records "
                f"{', '.join(map(str, left_out))}."
            ),
        ],
    )


class _Bench:
    """The model, its requests and what the solves share."""

    def __init__(
        self,
        editor: Editor,
        layer: int,
        requests: Sequence[EditRequest],
        values: _Values,
        generate: bool,
    ) -> None:
        self._requests, self._values, self._generate = requests, values, generate
        places = editor.method.architecture
        self._layout = places.weight_layout
        self._weight = edited_weight(editor.model, places, layer)
        self._evaluator = Evaluator(editor.model, editor.tokenizer)
        self._before = self._evaluator.score(requests, generate=generate)

    def together(self, part: _Values, factor: SecondMomentFactor) -> _Solved:
        """All equalities in one solve."""
        solved = solve_update(part.deltas, part.bare, part.mean, factor, self._layout)
        return _Solved(solved.update, solved.condition)

    def one_by_one(self, part: _Values, factor: SecondMomentFactor) -> _Solved:
        """Each request alone, towards its v* from where the earlier ones have moved its value."""
        outputs = torch.zeros(part.deltas.shape[1], len(part.deltas))
        inputs = torch.zeros(len(part.deltas), part.mean.shape[1])
        for place in range(len(part.deltas)):
            own = slice(place, place + 1)
            moved = outputs[:, :place] @ (inputs[:place] @ part.mean[place])
            residual = part.deltas[own] - moved
            solved = solve_update(residual, part.bare[own], part.mean[own], factor, self._layout)
            outputs[:, own] = solved.update.output_factor
            inputs[own] = solved.update.input_factor
        return _Solved(LowRankUpdate(outputs, inputs, self._layout))

    def memit(self, part: _Values, moment: SecondMoment, weight: float) -> _Solved:
        """MEMIT's least squares, in float64 as its code has it."""
        keys = part.mean.double().T
        system = weight * moment.matrix + keys @ keys.T
        return _Solved(
            LowRankUpdate(part.deltas.T, torch.linalg.solve(system, keys).T.float(), self._layout)
        )

    def row(self, name: str, solve: Callable[[_Values], _Solved], size: int) -> list[str]:
        """Solves for the first requests, and scores the model that holds them."""
        part = self._values.first(size)
        start = time.perf_counter()
        solved = solve(part)
        seconds = time.perf_counter() - start
        missed = (solved.update.dense() @ part.mean.T).T - part.deltas
        error = (missed.norm(dim=1) / part.deltas.norm(dim=1)).median()
        metrics = self._scored(solved.update, size)
        insides: list[tuple[str, ...]] = [(), ("generated",)] if self._generate else [()]
        scores = [
            record_scores(metrics, ("post", *inside, *path))
            for path in _SCORES.values()
            for inside in insides
        ]
        print(f"{size} edits, {name}: solved in {seconds:.2f} s", flush=True)
        return [
            str(size),
            name,
            f"{seconds:.2f}",
            f"{error:.1e}",
            f"{solved.update.norm() / self._weight.norm():.3f}",
            "" if solved.condition is None else f"{solved.condition:.0e}",
            *(_estimate(values) for values in scores),
        ]

    def _scored(self, update: LowRankUpdate, size: int) -> list[dict[str, Any]]:
        requests, before = self._requests[:size], self._weight.detach().clone()
        change = update.dense() if self._layout == "out_in" else update.dense().T
        with torch.no_grad():
            try:
                self._weight.add_(change)
                after = self._evaluator.score(requests, generate=self._generate)
            finally:
                self._weight.copy_(before)
        return merge(requests, self._before[:size], after)


def _estimate(values: Sequence[float | None]) -> str:
    known = mean_interval([value for value in values if value is not None])
    return f"{known.mean:.3f} ({known.low:.3f} – {known.high:.3f})"


def _consistent(requests: Sequence[EditRequest]) -> tuple[list[EditRequest], list[int]]:
    """The requests without those that contradict another, and the places of the latter."""
    targets: dict[str, set[str]] = {}
    for request in requests:
        targets.setdefault(_plain(request.prompt), set()).add(request.target_new)
    left_out = [
        place for place, request in enumerate(requests) if len(targets[_plain(request.prompt)]) > 1
    ]
    kept = [request for place, request in enumerate(requests) if place not in left_out]
    return kept, left_out


def _plain(text: str) -> str:
    return " ".join(text.split())


def _values(
    editor: Editor, requests: Sequence[EditRequest], options: argparse.Namespace
) -> _Values:
    """Values and keys of the requests; those in the file are not computed again."""
    path: Path | None = options.values
    origin = {name: str(getattr(options, name)) for name in _ORIGIN}
    parts = [] if path is None or not path.is_file() else [_read_values(path, origin)]
    done = len(parts[0]["deltas"]) if parts else 0
    for first in range(done, len(requests), _CHUNK):
        batch = requests[first : first + _CHUNK]
        result = editor.edit(batch, isolated=True, evaluate=False)
        updates = [update for edit in result.edits for update in edit.updates.values()]
        bare, mean = _keys(editor, batch, options.layer)
        _check(updates, mean)
        deltas = torch.cat([update.output_factor.T for update in updates])
        parts.append({"deltas": deltas, "bare": bare, "mean": mean})
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        parts = [whole]
        if path is not None:
            save_file(whole, path, metadata=origin)
        print(f"values: {first + len(batch)} of {len(requests)}", flush=True)
    return _Values(**parts[0]).first(len(requests))


def _read_values(path: Path, origin: dict[str, str]) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        if file.metadata() != origin:
            raise SystemExit(f"error: {path} holds values of {file.metadata()}; move it")
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _keys(editor: Editor, requests: Sequence[EditRequest], layer: int) -> tuple[Tensor, Tensor]:
    """Keys of the bare prompts and their means over the context templates, [n, d_in] each."""
    templates = editor.method.used_hparams()["context_templates"]
    texts, spans = [], []
    for request in requests:
        for template in templates:
            shift = template.index("{}")
            start, end = request.subject_span
            texts.append(template.replace("{}", request.prompt))
            spans.append((start + shift, end + shift))
    batch = RequestTokenizer.from_transformers(editor.tokenizer).encode(texts, subject_spans=spans)
    assert batch.subject_last is not None
    ids, mask, last = map(
        torch.from_numpy, (batch.input_ids, batch.attention_mask, batch.subject_last)
    )
    projection = edited_module(editor.model, editor.method.architecture, layer)
    found: list[Tensor] = []
    for first in range(0, len(texts), _ROWS):
        rows = slice(first, first + _ROWS)

        def keep(keys: Tensor, rows: slice = rows) -> None:
            found.append(keys[torch.arange(len(keys)), last[rows]].float())

        with torch.no_grad(), frozen(editor.model), watch_input(projection, keep, stop=True):
            editor.model(input_ids=ids[rows], attention_mask=mask[rows], use_cache=False)
    keys = torch.cat(found).unflatten(0, (len(requests), len(templates)))
    return keys[:, templates.index("{}")], keys.mean(dim=1)


def _check(updates: Sequence[LowRankUpdate], mean: Tensor) -> None:
    """The keys are those that the editor had: Δ k̄ = δ holds for each isolated edit."""
    for update, key in zip(updates, mean, strict=True):
        assert (update.input_factor @ key - 1).abs() < 1e-2


if __name__ == "__main__":
    main()
