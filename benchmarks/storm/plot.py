"""The picture: a column for each contestant, a row for each question, the same scales along a row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from .measures import Series
from .plan import PHASES

# Okabe and Ito's colours: told apart by eyes that see red and green alike (jfly.uni-koeln.de/color, 2008).
BLUE, ORANGE, VERMILION, GREY = "#0072B2", "#E69F00", "#D55E00", "#666666"
SHADES = {"slow": "#F5EBD5", "down": "#E4E4E4"}
#: Calls for each first attempt that the project allows itself.
BAR = 1.1

STYLE: dict[str, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    # The same figures make the same file.
    "svg.hashsalt": "storm",
}


@dataclass(frozen=True)
class Panel:
    """What the picture needs of one contestant.

    Args:
        title: over its column.
        series: second by second.
        starts: seconds from the first phase to each phase, and ``end``.
        rate: tasks a second that arrive.
    """

    title: str
    series: Series
    starts: Mapping[str, float]
    rate: float


def plot(panels: Sequence[Panel], base: Path) -> list[Path]:
    """Write the picture as ``base.svg`` and ``base.png``; return both paths."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 4.2 * len(panels), 9.0), layout="constrained", facecolor="white")
        figure.get_layout_engine().set(rect=(0, 0, 1 - 0.45 / figure.get_figwidth(), 1), wspace=0.13)
        axes = figure.subplots(3, len(panels), sharex=True, sharey="row", squeeze=False)
        for column, panel in enumerate(panels):
            _goodput(axes[0][column], panel)
            _calls(axes[1][column], panel)
            _amplification(axes[2][column], panel)
            axes[0][column].set_title(panel.title, pad=42)
            axes[2][column].set_xlabel("seconds since the start")
            for row in range(3):
                _phases(axes[row][column], panel, named=row == 0)
        for row, label in enumerate(("goodput, tasks/s", "load, calls/s", "amplification so far")):
            axes[row][0].set_ylabel(label)
            axes[row][0].set_ylim(top=axes[row][0].get_ylim()[1] * 1.02)
            # One row of words above the axes: no line runs through them, and the other columns need none.
            spot = {"loc": "lower left", "bbox_to_anchor": (0, 1.06 if row == 0 else 1.0), "ncols": 2, "borderaxespad": 0.1}
            axes[row][0].legend(fontsize=9, handlelength=1.6, columnspacing=1.2, **spot)
        figure.align_ylabels()
        paths = [base.with_suffix(".svg"), base.with_suffix(".png")]
        base.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=140)
    return paths


def _goodput(axes: Any, panel: Panel) -> None:
    axes.plot(panel.series.goodput, color=BLUE, linewidth=1.4, label="tasks that succeed")
    axes.axhline(panel.rate, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="tasks that arrive")
    axes.set_ylim(bottom=0)


def _calls(axes: Any, panel: Panel) -> None:
    seconds = range(len(panel.series.calls))
    axes.plot(panel.series.calls, color=VERMILION, linewidth=1.4, label="all calls")
    axes.fill_between(seconds, panel.series.firsts, color=ORANGE, linewidth=0, label="first attempts")
    axes.set_ylim(bottom=0)


def _amplification(axes: Any, panel: Panel) -> None:
    ratios = [math.nan if ratio is None else ratio for ratio in panel.series.amplification]
    axes.plot(ratios, color=BLUE, linewidth=1.8, label="calls / first attempts")
    axes.axhline(BAR, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label=f"{BAR:g}")
    axes.set_ylim(bottom=1)
    place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
    last = axes.annotate(f"{ratios[-1]:.2f}", (len(ratios) - 1, ratios[-1]), color=BLUE, weight="bold", **place)
    # Beside the axes, where plot() has left room: the layout engine, counting it in, can come to no end.
    last.set_in_layout(False)


def _phases(axes: Any, panel: Panel, *, named: bool) -> None:
    ends = [*(panel.starts[phase] for phase in PHASES[1:]), panel.starts["end"]]
    for phase, end in zip(PHASES, ends, strict=True):
        start = panel.starts[phase]
        if phase in SHADES:
            axes.axvspan(start, end, color=SHADES[phase], linewidth=0, zorder=0)
        if named:
            middle, above = (start + end) / 2, axes.get_xaxis_transform()
            axes.text(middle, 1.02, phase, transform=above, ha="center", va="bottom", color=GREY, fontsize=8)
    axes.set_xlim(0, panel.starts["end"])
    axes.set_axisbelow(True)
