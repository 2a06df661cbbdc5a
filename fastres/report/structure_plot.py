"""The picture of a network's structure: resolutions, blocks, and the two kinds of shortcut."""

from __future__ import annotations

import math
from typing import Any

from .. import _plots
from .structure import Structure

__all__ = ["draw_structure"]

_STEM = _plots.PALETTE[0]
_BLOCK = _plots.PALETTE[2]
_WIDTH = 0.62
_IDENTITY, _CONV = "#2b2f36", _plots.ACCENT


def draw_structure(axis: Any, structure: Structure) -> None:
    """A column a block, as high as its image (on a logarithmic scale), and its shortcut above it.

    Args:
        axis: matplotlib's, to draw on.
        structure: the network's.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    columns = _columns(structure)
    tallest = max(height for _, height, _ in columns)
    for index, (color, height, _) in enumerate(columns):
        axis.add_patch(
            Rectangle((index - _WIDTH / 2, -height / 2), _WIDTH, height, color=color, zorder=2)
        )
    axis.plot([-0.8, len(columns) - 0.2], [0, 0], color=_IDENTITY, linewidth=1, zorder=1)
    first = len(columns) - len(structure.blocks)
    for index, block in enumerate(structure.blocks, start=first):
        is_conv = block.shortcut == "conv"
        top = columns[index][1] / 2 + 0.12
        axis.plot(
            [index - 0.42, index - 0.42, index + 0.42, index + 0.42],
            [0, top, top, 0],
            color=_CONV if is_conv else _IDENTITY,
            linestyle="--" if is_conv else "-",
            linewidth=1.2,
        )
    _name_resolutions(axis, columns, tallest)
    axis.set_xlim(-1, len(columns))
    axis.set_ylim(-tallest * 0.8, tallest * 1.1)
    axis.set_axis_off()
    kinds = sorted({block.kind for block in structure.blocks})
    handles = [
        Line2D([], [], color=_IDENTITY, label="identity shortcut"),
        Line2D([], [], color=_CONV, linestyle="--", label="convolution in the shortcut"),
    ]
    title = f"{', '.join(kinds)} {structure.version}".strip()
    axis.legend(
        handles=handles, title=title, loc="upper right", frameon=False, fontsize=8, title_fontsize=8
    )


def _columns(structure: Structure) -> list[tuple[str, float, str]]:
    """(colour, height, resolution) of what comes before the blocks, and of every block."""
    blocks = [block.output_shape[1:] for block in structure.blocks]
    stem = [shape for shape in structure.chain[1:] if shape not in blocks]
    colored = [*((_STEM, shape) for shape in stem), *((_BLOCK, shape) for shape in blocks)]
    return [(color, _height(shape), _resolution(shape)) for color, shape in colored]


def _height(shape: tuple[int, ...]) -> float:
    return 0.35 + math.log2(max(shape[1], 1)) / 4


def _resolution(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{height}x{width}\nx{channels}"


def _name_resolutions(axis: Any, columns: list[tuple[str, float, str]], tallest: float) -> None:
    """Writes each resolution once, below the middle of its columns."""
    start = 0
    for index in range(1, len(columns) + 1):
        if index == len(columns) or columns[index][2] != columns[start][2]:
            middle = (start + index - 1) / 2
            axis.text(middle, -tallest * 0.55, columns[start][2], ha="center", va="top", fontsize=8)
            start = index
