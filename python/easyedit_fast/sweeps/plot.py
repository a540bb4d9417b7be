"""The plot of a sweep: every score against the layer, a line a mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyedit_fast.metrics import Estimate
from easyedit_fast.plots import require_matplotlib
from easyedit_fast.sweeps.rows import GENERATED, MODES, SECTIONS, Mode, SweepRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's blue and vermilion: told apart with every kind of colour vision. Line, marker and
# hatch tell them apart in print.
_STYLES: Mapping[Mode, dict[str, Any]] = {
    "full": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "simplified": {
        "color": "#D55E00",
        "linestyle": "--",
        "marker": "s",
        "markerfacecolor": "white",
    },
}
_HATCHES: Mapping[Mode, str] = {"full": "", "simplified": "////"}
_LABELS: Mapping[Mode, str] = {"full": "full (second moment C)", "simplified": "simplified (C = I)"}
_TITLES = {"rewrite": "success (rewrite)"}
_WIDTH, _HEIGHT, _DPI = 2.9, 2.5, 200
_TICKS = 12


def plot_rows(
    rows: Sequence[SweepRow], unedited: Mapping[str, Estimate], path: Path, title: str
) -> None:
    """Draws the scores against the layer, with 95 % intervals as bands.

    Args:
        rows: The rows.
        unedited: Scores before any edit, as dotted lines.
        path: Where to; the suffix says the format, e.g. ``.png``.
        title: Over the whole.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    layers = sorted({row.layer for row in rows})
    present = {name for row in rows for name in row.records}
    columns = [name for name in SECTIONS if name in present]
    kinds = {"teacher-forced": "", "generated": GENERATED}
    kinds = {kind: prefix for kind, prefix in kinds.items() if prefix + columns[0] in present}
    size = (_WIDTH * len(columns), _HEIGHT * len(kinds) + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(kinds), len(columns), sharex=True, sharey=True, squeeze=False)
    for line, (kind, prefix) in zip(grid, kinds.items(), strict=True):
        line[0].set_ylabel(f"{kind} score")
        for axes, name in zip(line, columns, strict=True):
            _draw(axes, rows, unedited, prefix + name)
    for axes, name in zip(grid[0], columns, strict=True):
        axes.set_title(_TITLES.get(name, name), fontsize="medium")
    for axes in grid[-1]:
        axes.set_xlabel("edited layer")
        if len(layers) > _TICKS:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            axes.set_xticks(layers)
    grid[0][0].set_ylim(-0.03, 1.03)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=_DPI)


def _draw(
    axes: Axes, rows: Sequence[SweepRow], unedited: Mapping[str, Estimate], name: str
) -> None:
    """One score: a line and a band a mode, and the unedited model's."""
    for mode in MODES:
        own = [(row.layer, row.scores[name]) for row in rows if row.mode == mode]
        if not own:
            continue
        layers = [layer for layer, _ in own]
        low, high = ([getattr(score, end) for _, score in own] for end in ("low", "high"))
        style = _STYLES[mode]
        axes.fill_between(
            layers, low, high, alpha=0.18, color=style["color"], hatch=_HATCHES[mode], linewidth=0
        )
        means = [score.mean for _, score in own]
        axes.plot(layers, means, label=_LABELS[mode], linewidth=1.6, markersize=4.5, **style)
    if name in unedited:
        axes.axhline(
            unedited[name].mean, color="0.35", linestyle=":", linewidth=1.2, label="unedited model"
        )
    axes.grid(alpha=0.25, linewidth=0.6)
