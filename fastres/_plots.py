"""Pictures. matplotlib is imported when one is drawn, and never opens a window."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["ACCENT", "PALETTE", "grouped_bars", "new_figure", "save"]

ACCENT = "#c8452f"
#: For what is compared against: greys and cool colours that leave the eye to the accent.
PALETTE = ("#c9ced6", "#8d97a5", "#5b7fa6", "#7fb0a3", "#d8b365", "#a98bbd", "#4d5a6b", "#93b5cf")
_ACCENTS = (ACCENT, "#8f2a1a")
_TEXT = "#2b2f36"


def new_figure(width: float, height: float, rows: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure without a window, and its axes (an array of them if ``rows`` > 1)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 1, **options)
    for axis in axes if rows > 1 else [axes]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e8eb", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(colors=_TEXT)
    return figure, axes


def save(figure: Any, target: Path | BinaryIO) -> None:
    """Writes the figure in the format that a path's suffix names, SVG to anything else."""
    form = None if isinstance(target, Path) else "svg"
    figure.savefig(target, dpi=150, facecolor="white", format=form)


def grouped_bars(
    path: Path | BinaryIO,
    *,
    title: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    labels: Mapping[str, Sequence[str]],
    note: str = "",
    accent: str = "fastres",
) -> None:
    """Draws groups of bars, one bar a series; higher is better.

    Args:
        path: of the picture; or a file, which gets it as SVG.
        title: above it.
        groups: names of the groups.
        series: name -> a value for each group; None leaves a gap.
        labels: name of a series -> what to write over its bars.
        note: below it.
        accent: series whose names start with this are drawn in colour.
    """
    figure, axis = new_figure(max(8.0, 1.2 + 0.45 * len(groups) * (len(series) + 1)), 4.6)
    width = 0.8 / len(series)
    accents, quiet = iter(_ACCENTS * len(series)), iter(PALETTE * len(series))
    for index, (name, values) in enumerate(series.items()):
        is_accent = name.startswith(accent)
        color = next(accents) if is_accent else next(quiet)
        positions = [group - 0.4 + width * (index + 0.5) for group in range(len(groups))]
        heights = [value or 0.0 for value in values]
        bars = axis.bar(positions, heights, width * 0.92, label=name, color=color)
        axis.bar_label(
            bars,
            labels[name],
            padding=2,
            fontsize=8,
            color=color if is_accent else _TEXT,
            fontweight="bold" if is_accent else "normal",
        )
    axis.set_xlim(-0.6, len(groups) - 0.4)
    axis.set_xticks(range(len(groups)), groups)
    axis.tick_params(axis="x", length=0)
    axis.margins(y=0.12)
    figure.suptitle(title, x=0.01, ha="left", color=_TEXT, fontsize=11)
    figure.legend(frameon=False, ncols=min(len(series), 4), loc="outside lower center", fontsize=9)
    axis.set_xlabel(note, fontsize=8, color="#6b7280", labelpad=8)
    save(figure, path)
