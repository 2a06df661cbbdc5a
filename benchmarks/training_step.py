"""Where a training step's time goes: every layer of a network, in eager and in fastres's ops.

``python -m benchmarks.training_step --models resnet50 --batch 8 --threads 2`` prints, for every
different layer, how often it occurs, milliseconds and percent of the machine's FMA peak, and the
sums over the network. A layer's time in eager is that of convolution, BatchNorm and ReLU in the
faster memory format; a block's end is the addition of the shortcut and ReLU.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastres import _measure

from .shapes import MODELS, ConvShape, conv_calls

_OPS = torch.ops.fastres
_COLUMNS = ("forward", "dgrad", "wgrad", "backward", "eager forward", "eager backward")

Calls = dict[str, Callable[[], Any]]


def _channels_last(*size: int) -> Tensor:
    return torch.randn(size).to(memory_format=torch.channels_last)


def _conv_calls(shape: ConvShape, batch: int) -> Calls:
    c, k = shape.in_channels, shape.out_channels
    x = _channels_last(batch, c, shape.height, shape.width)
    weight = torch.randn(k, c // shape.groups, shape.kernel, shape.kernel) / 10
    is_stem = c == 3
    affine = [None] * 3 if is_stem else [torch.randn(c) / 4, torch.rand(c) + 0.5, torch.randn(c)]
    source = (x, *affine, "none" if is_stem else "relu", 0.01, weight)
    pads = [shape.padding] * 4
    geometry = ([shape.stride] * 2, pads, [1, 1], shape.groups)
    y, mean, _ = _OPS.conv_stats(*source, *geometry)
    grads = (torch.randn_like(y), torch.randn(k), torch.randn(k) / 100)

    def backward(*wanted: bool) -> Callable[[], Any]:
        return lambda: _OPS.conv_stats_backward(*grads, *source, y, mean, *geometry, *wanted)

    need_x = not is_stem
    return {
        "forward": lambda: _OPS.conv_stats(*source, *geometry),
        **({"dgrad": backward(True, True, False)} if need_x else {}),
        "wgrad": backward(False, False, True),
        "backward": backward(need_x, need_x, True),
    }


def _conv_eager_calls(shape: ConvShape, batch: int) -> Calls:
    calls: Calls = {}
    for memory_format in (torch.contiguous_format, torch.channels_last):
        layout = {"memory_format": memory_format}
        k = shape.out_channels
        x = torch.randn(batch, shape.in_channels, shape.height, shape.width).to(**layout)
        weight = torch.randn(k, x.shape[1] // shape.groups, shape.kernel, shape.kernel)
        weight = weight.to(**layout)
        gamma, beta = torch.ones(k), torch.zeros(k)
        leaves = [t.requires_grad_() for t in (weight, gamma, beta)]
        if shape.in_channels != 3:
            leaves.append(x.requires_grad_())
        geometry = (shape.stride, shape.padding, 1, shape.groups)

        def forward(x=x, weight=weight, gamma=gamma, beta=beta, geometry=geometry) -> Tensor:
            z = F.batch_norm(
                F.conv2d(x, weight, None, *geometry), None, None, gamma, beta, training=True
            )
            return F.relu(z) if shape.act == "relu" and not shape.residual else z

        z = forward()
        _add_eager(calls, str(memory_format), forward, z, leaves, torch.randn_like(z))
    return calls


def _end_calls(shape: ConvShape, batch: int) -> Calls:
    size = (batch, shape.out_channels, shape.out_height, shape.out_width)
    y, residual, grad = (_channels_last(*size) for _ in range(3))
    affine = [torch.randn(size[1]) for _ in range(3)]
    source = (y, *affine, residual, None, None, None, "relu", 0.01)
    return {
        "forward": lambda: _OPS.affine_add_act(*source),
        "backward": lambda: _OPS.affine_add_act_backward(grad, *source),
    }


def _end_eager_calls(shape: ConvShape, batch: int) -> Calls:
    size = (batch, shape.out_channels, shape.out_height, shape.out_width)
    y, residual = _channels_last(*size).requires_grad_(), _channels_last(*size).requires_grad_()
    calls: Calls = {}

    def forward() -> Tensor:
        return F.relu(y + residual)

    _add_eager(calls, "", forward, forward(), [y, residual], _channels_last(*size))
    return calls


def _add_eager(
    calls: Calls,
    layout: str,
    forward: Callable[[], Tensor],
    output: Tensor,
    leaves: list[Tensor],
    grad: Tensor,
) -> None:
    calls[f"eager forward {layout}"] = forward
    calls[f"eager backward {layout}"] = lambda: torch.autograd.grad(
        output, leaves, grad, retain_graph=True
    )


def _faster_layout(times: dict[str, float]) -> dict[str, float]:
    """With eager's times in the layout that is faster over forward and backward alone."""
    layouts = {name.removeprefix("eager forward ") for name in times if "eager forward" in name}
    if not layouts:
        return times
    best = min(layouts, key=lambda a: times[f"eager forward {a}"] + times[f"eager backward {a}"])
    result = {name: value for name, value in times.items() if "eager" not in name}
    for way in ("forward", "backward"):
        result[f"eager {way}"] = times[f"eager {way} {best}"]
    return result


def _print_row(name: str, count: str, flops: float, times: dict[str, float], peak: float) -> None:
    cells = []
    for column in _COLUMNS:
        if column not in times:
            cells.append(f"{'':>16}")
            continue
        done = flops * (2 if "backward" in column and "dgrad" in times else 1)
        share = f"({100 * done / times[column] / 1e6 / peak:3.0f} %)" if flops else ""
        cells.append(f"{times[column]:9.2f} {share:>6}")
    print(f"{name:34}{count:>3} " + " ".join(cells), flush=True)


def _run(model: str, batch: int, rounds: int, with_eager: bool, peak: float) -> None:
    print(f"{model}, batch {batch}: ms (percent of {peak:.0f} GFLOP/s)")
    print(f"{'layer':34}{'':>3} " + " ".join(f"{column:>16}" for column in _COLUMNS))
    totals: dict[str, float] = Counter()
    calls = Counter(conv_calls(model))
    ends = Counter(
        replace(shape, in_channels=0, groups=1) for shape in calls.elements() if shape.residual
    )
    for shapes, ours, eager in (
        (calls, _conv_calls, _conv_eager_calls),
        (ends, _end_calls, _end_eager_calls),
    ):
        for shape, count in shapes.items():
            contestants = ours(shape, batch) | (eager(shape, batch) if with_eager else {})
            seconds = _measure.medians(_measure.time_in_turn(contestants, rounds))
            times = _faster_layout({name: 1e3 * value for name, value in seconds.items()})
            is_end = shape.in_channels == 0
            name = f"end of {shape.out_channels}_{shape.out_height}x{shape.out_width}"
            flops = 0 if is_end else shape.flops(batch)
            _print_row(name if is_end else str(shape), str(count), flops, times, peak)
            for column, value in times.items():
                totals[column] += count * value
    _print_row("sum", "", 0, totals, peak)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["resnet50"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-eager", action="store_true", help="fastres's ops alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    from fastres._diagnostics import fma_peak_gflops

    peak = fma_peak_gflops(arguments.threads)
    for model in arguments.models:
        _run(model, arguments.batch, arguments.rounds, not arguments.no_eager, peak)


if __name__ == "__main__":
    main()
