"""The curves of a training run, from its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyedit_fast.errors import DataFileError
from easyedit_fast.plots import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart with every kind of colour vision; markers and lines tell them
# apart in print.
_STYLES: Sequence[dict[str, Any]] = (
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    {"color": "#009E73", "linestyle": "-.", "marker": "^"},
)
_PANELS: Mapping[str, Sequence[tuple[str, str]]] = {
    "total loss": (("loss/total_val", "validation"), ("loss/total_train", "training")),
    "loss on the edits, nats a token": (
        ("loss/edit_val", "validation"),
        ("loss/edit_train", "training"),
    ),
    "locality: KL divergence, nats a token": (
        ("loss/loc_val", "validation"),
        ("loss/loc_train", "training"),
    ),
    "validation: share of tokens": (
        ("edit/acc_val", "rewrite"),
        ("rephrase/acc_val", "rephrase"),
        ("locality/acc_val", "locality"),
    ),
}
_SIZE, _DPI = (8.0, 6.0), 160


def plot_training(lines: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draws the losses and scores over the iterations.

    Args:
        lines: As `read_log` gives them.
        path: Where to; the suffix says the format, e.g. ``.png``.
        title: Over the whole.

    Raises:
        MissingPackageError: matplotlib is not installed.
        DataFileError: The log holds nothing to draw yet.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    if not lines:
        raise DataFileError("the log of the run is empty; let the run come to its first line")
    figure = Figure(figsize=_SIZE, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    for axes, (name, curves) in zip(panels.flat, _PANELS.items(), strict=True):
        _draw(axes, lines, curves)
        axes.set_title(name, fontsize="medium")
        axes.grid(alpha=0.25, linewidth=0.6)
        if "share" in name:
            axes.set_ylim(-0.03, 1.03)
        else:
            axes.set_yscale("log")
    for axes in panels[-1]:
        axes.set_xlabel("iteration")
    figure.suptitle(title)
    figure.savefig(path, dpi=_DPI)


def _draw(
    axes: Axes, lines: Sequence[Mapping[str, Any]], curves: Sequence[tuple[str, str]]
) -> None:
    drawn = False
    for (key, label), style in zip(curves, _STYLES, strict=False):
        points = [(line["iteration"], line[key]) for line in lines if key in line]
        if points:
            at, values = zip(*points, strict=True)
            axes.plot(at, values, label=label, linewidth=1.4, markersize=3.5, **style)
            drawn = True
    if drawn:
        axes.legend(frameon=False, fontsize="small")
