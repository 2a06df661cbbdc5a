"""The plots of the report, as SVG that stands in the page."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from fastres import _plots


class Timed(Protocol):
    """What the report knows of a timed layer."""

    group: str
    implementation: str
    is_eager: bool
    info: dict[str, Any]


def network_bars(values: Mapping[str, Mapping[str, float]], form: str, note: str) -> str:
    """Groups of bars, one group a network: group -> name -> value."""
    names = list(dict.fromkeys(name for group in values.values() for name in group))
    series = {name: [group.get(name) for group in values.values()] for name in names}
    labels = {
        name: ["" if value is None else form.format(value) for value in heights]
        for name, heights in series.items()
    }
    picture = io.BytesIO()
    _plots.grouped_bars(
        picture, title="", groups=list(values), series=series, labels=labels, note=note
    )
    return _inline(picture)


def peak_bars(title: str, layers: Sequence[Timed]) -> str:
    """A row for each layer: what every implementation reaches, in percent of the FMA peak."""
    groups = list(dict.fromkeys(layer.group for layer in layers))
    figure, axis = _plots.new_figure(9, 1.4 + 0.3 * len(groups))
    rows = {group: row for row, group in enumerate(reversed(groups))}
    for name, color in _colors(layers):
        mine = [layer for layer in layers if layer.implementation == name]
        axis.plot(
            [layer.info["percent_of_peak"] for layer in mine],
            [rows[layer.group] for layer in mine],
            "o",
            color=color,
            label=name,
        )
    axis.axvline(100, color=_plots.PALETTE[1], linewidth=1)
    axis.set_yticks(range(len(groups)), [group.removeprefix(title).strip() for group in rows])
    axis.tick_params(axis="y", labelsize=8, length=0)
    axis.set_ylim(-0.7, len(groups) - 0.3)
    axis.set_xlim(left=0)
    axis.set_xlabel("% of the FMA peak")
    axis.set_title(title, loc="left", fontsize=11)
    axis.legend(frameon=False, fontsize=8)
    return _svg(figure)


def roofline(title: str, layers: Sequence[Timed]) -> str:
    """GFLOP/s over FLOP per byte, under the machine's roof."""
    figure, axis = _plots.new_figure(8, 5)
    peak = max(layer.info["fma_peak_gflops"] for layer in layers)
    bandwidth = max(layer.info["copy_bandwidth_gbs"] for layer in layers)
    intensities = [_intensity(layer) for layer in layers]
    ridge = peak / bandwidth
    ends = [min([ridge / 4, *intensities]), ridge, max([ridge * 4, *intensities])]
    roof = [min(peak, bandwidth * x) for x in ends]
    axis.loglog(ends, roof, color=_plots.PALETTE[6], linewidth=1.5)
    axis.annotate(f"{peak:.0f} GFLOP/s", (ends[2], peak), ha="right", va="bottom", fontsize=8)
    axis.annotate(f"{bandwidth:.0f} GB/s", (ends[0], roof[0]), va="bottom", fontsize=8)
    for name, color in _colors(layers):
        mine = [layer for layer in layers if layer.implementation == name]
        axis.loglog(
            [_intensity(layer) for layer in mine],
            [layer.info["gflops"] for layer in mine],
            "o",
            color=color,
            label=name,
            markersize=5,
        )
    axis.set_xlabel("FLOP per byte that must move")
    axis.set_ylabel("GFLOP/s")
    axis.set_title(title, loc="left", fontsize=11)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    return _svg(figure)


def _intensity(layer: Timed) -> float:
    return layer.info["gflops"] / layer.info["gbytes_per_s"]


def _colors(layers: Sequence[Timed]) -> Iterator[tuple[str, str]]:
    """A colour for each implementation: greys for eager's, reds for fastres's."""
    kinds = dict.fromkeys((layer.implementation, layer.is_eager) for layer in layers)
    greys, reds = iter(_plots.PALETTE[1:]), iter((_plots.ACCENT, "#8f2a1a", "#e59a8c"))
    for name, is_eager in kinds:
        yield name, next(greys if is_eager else reds)


def _svg(figure: Any) -> str:
    picture = io.BytesIO()
    _plots.save(figure, picture)
    return _inline(picture)


def _inline(picture: io.BytesIO) -> str:
    """The element itself, without the XML declaration, which has no place inside a page."""
    text = picture.getvalue().decode()
    return text[text.index("<svg") :]
