"""The figures as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .simulation import Measures, Scenario

__all__ = ["draw"]

#: Okabe and Ito's colours, which also those tell apart who do not see red and green.
_COLOURS = ("#0072B2", "#D55E00", "#777777")
_INK, _FAINT = "#333333", "#888888"


def draw(scenario: Scenario, results: Sequence[tuple[str, Measures]], directory: Path, name: str = "fleet") -> list[Path]:
    """Write the picture as SVG and PNG; return the files."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    settings = {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "svg.hashsalt": "fleet",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": _FAINT,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
    }
    with mpl.rc_context(settings):
        figure, axes = plt.subplots(4, 1, figsize=(9.5, 9.6), sharex=True, height_ratios=[1.15, 1, 1, 1])
        seconds = range(results[0][1].seconds)
        for number, (label, measures) in enumerate(results):
            width = 1.3 if number else 2.0
            look: dict[str, Any] = {"color": _COLOURS[number], "linewidth": width, "zorder": 5 - number, "label": label}
            axes[0].plot(seconds, measures.calls, **look)
            axes[1].plot(seconds, _mean(measures.goodput, 3), **look)
            axes[2].plot(seconds, _ratio(measures), **look)
            axes[3].plot(seconds, [waiting / 1000 for waiting in measures.waiting], **look)
        titles = (
            ("Calls to the dependency, a second", (scenario.capacity, "its capacity", True)),
            ("Goodput: tasks done, a second", (scenario.rate, "published", True)),
            ("Calls per first attempt, over the last ten seconds", (1.1, "1.1", True)),
            ("Tasks waiting, thousands", None),
        )
        for axis, (title, level) in zip(axes, titles, strict=True):
            axis.set_title(title, loc="left", fontsize=10, color=_INK, fontweight="bold", pad=6)
            axis.set_xlim(0, scenario.end)
            axis.set_ylim(bottom=0)
            axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
            axis.set_axisbelow(True)
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
            axis.axvspan(scenario.normal, scenario.dies, color="#fff3d6", zorder=0, linewidth=0)
            axis.axvspan(scenario.dies, scenario.heals, color="#fbe3e0", zorder=0, linewidth=0)
            if level is not None:
                value, text, above = level
                axis.axhline(value, color=_FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
                place = {"textcoords": "offset points", "ha": "left", "va": "bottom" if above else "top"}
                axis.annotate(text, (0, value), (4, 2 if above else -3), color=_FAINT, fontsize=8, **place)
        top = axes[0].get_ylim()[1]
        phases = (("normal", 0.0, scenario.normal), ("slow", scenario.normal, scenario.dies), ("down", scenario.dies, scenario.heals))
        for text, start, end in (*phases, ("healed", scenario.heals, scenario.end)):
            axes[0].text((start + end) / 2, top * 0.97, text, ha="center", va="top", color=_INK, fontsize=9)
        axes[-1].set_xlabel("seconds")
        axes[-1].set_xticks(range(0, int(scenario.end) + 1, 30))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.055, 0.968), ncols=3, frameon=False, fontsize=9)
        figure.suptitle(
            f"{scenario.workers:,} simulated workers, {scenario.rate:,.0f} tasks a second, one dependency",
            x=0.065,
            ha="left",
            fontsize=12,
            color=_INK,
        )
        figure.tight_layout(rect=(0, 0, 1, 0.955), h_pad=1.2)
        directory.mkdir(parents=True, exist_ok=True)
        files = [directory / f"{name}.svg", directory / f"{name}.png"]
        figure.savefig(files[0], metadata={"Date": None})
        figure.savefig(files[1], dpi=130)
        plt.close(figure)
    return files


def _mean(values: Sequence[int], length: int) -> list[float]:
    return [sum(values[max(0, at - length + 1) : at + 1]) / min(length, at + 1) for at in range(len(values))]


def _ratio(measures: Measures) -> list[float]:
    """Return calls per first attempt over ten seconds; a gap where there was hardly any first attempt."""
    found = []
    for at in range(measures.seconds):
        span = slice(max(0, at - 9), at + 1)
        firsts = sum(measures.firsts[span])
        found.append(sum(measures.calls[span]) / firsts if firsts >= 20 else float("nan"))
    return found
