"""A profile as pictures: PNG files, drawn with matplotlib (extra ``plots``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyedit_fast.files import replacing
from easyedit_fast.plots import require_matplotlib
from easyedit_fast.profiling.results import WHOLE, BatchSize, Profile, Steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, and lighter shades of it: told apart by colour-blind readers.
_BLUE, _ORANGE, _GREEN, _RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_LIGHT_BLUE, _LIGHT_GREEN, _PINK, _YELLOW = "#8CC4E3", "#7CC8B1", "#CC79A7", "#F0E442"
_BLACK, _GREY = "#000000", "#9A9A9A"
_PHASE_COLOURS = {
    "evaluate before": _LIGHT_GREEN,
    "templates": _YELLOW,
    "tokenise": _PINK,
    "trunk": _ORANGE,
    "optimise": _BLUE,
    "solve": _RED,
    "update": _BLACK,
    "evaluate after": _GREEN,
}
_DARK = (_BLUE, _GREEN, _RED, _BLACK)  # a label on these is white
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
}
_DPI = 200
_LABELLED_SHARE = 0.08  # of the bar: below it a label has no room
_HALF_BAR = 0.4
_MIB = 2**20


def save_charts(profile: Profile, folder: Path) -> dict[str, Path]:
    """Writes ``phases.png``, and ``batch_sizes.png`` where batch sizes were measured.

    Returns:
        Their paths by what they show.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib as mpl

    paths = {}
    with mpl.rc_context(_STYLE):
        paths["phases"] = _save(_phases_figure(profile), folder / "phases.png")
        if profile.batches:
            figure = _batch_sizes_figure(profile)
            paths["batch_sizes"] = _save(figure, folder / "batch_sizes.png")
    return paths


def _save(figure: Figure, path: Path) -> Path:
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=_DPI, facecolor="white")
    return path


def _phases_figure(profile: Profile) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with_steps = profile.steps is not None
    layout = ConstrainedLayoutEngine(h_pad=0.12)
    figure = Figure(figsize=(8, 5.6 if with_steps else 2.4), layout=layout)
    parts = figure.subplots(
        2 if with_steps else 1, height_ratios=(1, 2.2) if with_steps else None, squeeze=False
    )
    _draw_phases(parts[0][0], profile)
    if profile.steps is not None:
        _draw_steps(parts[1][0], profile.steps)
    figure.supxlabel(_caption(profile), fontsize=7, color="#555555")
    return figure


def _draw_phases(axes: Axes, profile: Profile) -> None:
    """One bar, as long as an edit in the mean, cut into its phases."""
    parts = [phase for phase in profile.phases if phase.name != WHOLE]
    whole = profile.phases[-1].seconds.mean
    left = 0.0
    for phase in parts:
        seconds, colour = max(phase.seconds.mean, 0.0), _PHASE_COLOURS.get(phase.name, _GREY)
        label = f"{phase.name}, {_duration(phase.seconds.mean)}"
        axes.barh(0, seconds, left=left, color=colour, label=label)
        if phase.share >= _LABELLED_SHARE:
            axes.text(
                left + seconds / 2, 0, f"{phase.name}\n{phase.share:.0%}",
                ha="center", va="center", color="white" if colour in _DARK else "black", fontsize=8,
            )  # fmt: skip
        left += seconds
    requests = profile.settings["requests"]
    axes.set_title(f"One edit of {requests} request{'s' * (requests > 1)}, phase by phase")
    axes.set_xlabel("seconds (mean of the repeats)")
    axes.set_xlim(0, whole)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.5), ncols=3, fontsize=8)


def _duration(seconds: float) -> str:
    """Seconds, milliseconds or microseconds, whichever gives a number of some digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.0f} µs"


def _draw_steps(axes: Axes, steps: Steps) -> None:
    """A bar a step: forward, backward and the rest, and the floor as a line."""
    from matplotlib.ticker import MaxNLocator

    numbers = range(1, len(steps.each) + 1)
    forward = [step.forward for step in steps.each]
    backward = [step.backward for step in steps.each]
    rest = [step.seconds - step.forward - step.backward for step in steps.each]
    both = [one + other for one, other in zip(forward, backward, strict=True)]
    axes.bar(numbers, forward, color=_BLUE, label="forward")
    axes.bar(numbers, backward, bottom=forward, color=_LIGHT_BLUE, label="backward and optimiser")
    axes.bar(numbers, rest, bottom=both, color=_GREY, label="the rest")
    axes.hlines(
        [step.needed / steps.reachable for step in steps.each],
        [number - _HALF_BAR for number in numbers],
        [number + _HALF_BAR for number in numbers],
        color=_RED,
        label=f"floor: no pads, at a matmul's {steps.reachable / 1e9:,.0f} GFLOP/s",
    )
    axes.set_title(
        f"Its optimisation steps: {steps.operations / 1e9:.1f} GFLOP each in the mean, "
        f"at {steps.rate / 1e9:,.0f} GFLOP/s"
    )
    axes.set_xlabel("step")
    axes.set_ylabel("seconds")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=False, axis="x")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=4, fontsize=8)


def _batch_sizes_figure(profile: Profile) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    rows = profile.batches
    known = all(row.peak_memory is not None for row in rows)
    figure = Figure(figsize=(9.6 if known else 6.6, 3.2), layout="constrained")
    parts = figure.subplots(1, 3 if known else 2)
    _draw_latency(parts[0], rows)
    _draw_throughput(parts[1], rows)
    if known:
        _draw_memory(parts[2], rows)
    for axes in parts:
        axes.set_xlabel("requests a batch")
        axes.set_xscale("log", base=2)
        axes.set_xticks([row.batch_size for row in rows], [str(row.batch_size) for row in rows])
        axes.xaxis.set_minor_locator(NullLocator())
    caption = f"editing without evaluation; {_caption(profile)}"
    figure.supxlabel(caption, fontsize=7, color="#555555")
    return figure


def _draw_latency(axes: Axes, rows: list[BatchSize]) -> None:
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    sizes = [row.batch_size for row in rows]
    axes.fill_between(
        sizes, [row.seconds.p50 for row in rows], [row.seconds.p90 for row in rows],
        color=_BLUE, alpha=0.2, linewidth=0, label="p50 to p90",
    )  # fmt: skip
    axes.plot(sizes, [row.seconds.p50 for row in rows], "o-", color=_BLUE, label="a batch (p50)")
    axes.plot(
        sizes, [row.seconds_per_edit for row in rows], "s--", color=_RED, label="an edit (mean)"
    )
    axes.set_yscale("log")
    # A range of less than a decade would have one tick or none.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title("Latency")
    axes.set_ylabel("seconds")
    axes.legend(fontsize=8)


def _draw_throughput(axes: Axes, rows: list[BatchSize]) -> None:
    axes.plot(
        [row.batch_size for row in rows], [row.edits_per_second for row in rows],
        "o-", color=_GREEN,
    )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_title("Throughput")
    axes.set_ylabel("edits a second")


def _draw_memory(axes: Axes, rows: list[BatchSize]) -> None:
    axes.plot(
        [row.batch_size for row in rows], [(row.peak_memory or 0) / _MIB for row in rows],
        "o-", color=_ORANGE,
    )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_title("Peak memory beside the model")
    axes.set_ylabel("MiB")


def _caption(profile: Profile) -> str:
    given: dict[str, Any] = profile.settings
    number = given["threads"]
    threads = f", {number} thread{'s' * (number > 1)}" if given["device"] == "cpu" else ""
    return (
        f"{given['method']} on {given['model']}, {given['device']}{threads}, {given['dtype']}, "
        f"{given['hyperparameters']}, {given['repeats']} repeats"
    )
