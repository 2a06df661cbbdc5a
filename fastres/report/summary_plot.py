"""The picture of a summary: where a network's operations are, and where its bytes go."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _plots
from .structure_plot import draw_structure

if TYPE_CHECKING:
    from .summary import Layer, Summary

__all__ = ["draw"]

_CONV_1X1 = "1x1 convolution"
_CONV = "convolution"
_GROUPED = "grouped convolution"
_NORM = "normalisation"
_ACTIVATION = "activation"
_OTHER = "other"
_COLORS = {
    _CONV_1X1: _plots.PALETTE[2],
    _CONV: _plots.PALETTE[6],
    _GROUPED: _plots.PALETTE[3],
    _NORM: _plots.ACCENT,
    _ACTIVATION: _plots.PALETTE[4],
    _OTHER: _plots.PALETTE[0],
}
_ACTIVATIONS = ("ReLU", "SiLU", "GELU", "Hardswish", "Sigmoid", "Tanh", "Hardsigmoid", "Softmax")
#: Sections narrower than this share of the picture go without their name.
_MIN_NAMED_SECTION = 0.03


def draw(summary: Summary, path: Path) -> None:
    """The network's blocks, if it has any, and one bar a layer, coloured by what the layer is."""
    width = max(8.0, min(0.07 * len(summary.layers), 18.0))
    structure = summary.structure
    if structure is not None and structure.blocks:
        ratios = {"height_ratios": [0.7, 1, 1]}
        figure, (top, *axes) = _plots.new_figure(width, 8.0, rows=3, gridspec_kw=ratios)
        draw_structure(top, structure)
    else:
        figure, axes = _plots.new_figure(width, 6.0, rows=2)
        top = axes[0]
    kinds = [_category(layer) for layer in summary.layers]
    panels = (
        (axes[0], [layer.macs / 1e6 for layer in summary.layers], "million multiply-accumulates"),
        (axes[1], [layer.bytes / 2**20 for layer in summary.layers], "MiB moved"),
    )
    for axis, values, label in panels:
        axis.bar(range(len(values)), values, width=0.9, color=[_COLORS[kind] for kind in kinds])
        axis.set_ylabel(label)
        axis.margins(x=0.005)
        _name_sections(axis, summary.layers)
    top.set_title(
        f"{summary.model}, input {'x'.join(map(str, summary.input_shape))}\n"
        f"{summary.macs / 1e9:.2f} GMACs, {summary.parameters / 1e6:.1f} M parameters, "
        f"{summary.bytes / 2**20:.0f} MiB moved if nothing is fused",
        loc="left",
        fontsize=11,
        pad=18,
    )
    for axis in axes:
        axis.set_xticks([])
    _add_legend(figure, summary, kinds)
    _plots.save(figure, path)


def _category(layer: Layer) -> str:
    kind = layer.kind
    if kind.startswith("Conv"):
        if " g" in kind:
            return _GROUPED
        return _CONV_1X1 if kind.split()[1:2] == ["1"] else _CONV
    if "Norm" in kind:
        return _NORM
    return _ACTIVATION if kind.startswith(_ACTIVATIONS) else _OTHER


def _name_sections(axis: Any, layers: tuple[Layer, ...]) -> None:
    """Shades every other top-level submodule, and writes its name above."""
    start = 0
    for index, (name, members) in enumerate(groupby(layers, lambda x: x.name.split(".")[0])):
        size = len(list(members))
        if index % 2 == 0:
            axis.axvspan(start - 0.5, start + size - 0.5, color="#f3f4f6", zorder=0)
        if size >= _MIN_NAMED_SECTION * len(layers):
            axis.text(
                start + size / 2 - 0.5,
                1.01,
                name,
                transform=axis.get_xaxis_transform(),
                ha="center",
                fontsize=8,
                color="#6b7280",
            )
        start += size


def _add_legend(figure: Any, summary: Summary, kinds: list[str]) -> None:
    from matplotlib.patches import Patch

    patches = []
    for kind, color in _COLORS.items():
        moved = sum(x.bytes for x, k in zip(summary.layers, kinds, strict=True) if k == kind)
        if moved:
            share = 100 * moved / summary.bytes
            patches.append(Patch(color=color, label=f"{kind} ({share:.0f} % of the bytes)"))
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
