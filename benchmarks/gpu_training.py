"""What a training step moves on a GPU, by cause: fused, and one operator after the other.

Counted per tensor that an operator reads or writes once, in float16 with float32 weights; a test
compares the training operators' part with what ptxemu counts of their kernels. One operator after
the other is eager PyTorch in channels_last under autocast: weights are cast for the convolutions
and their gradients back; BatchNorm reads its input twice in forward, and input and gradient twice
in backward; ReLU is in place, and its backward reads its output; the addition is in place, and
where a shortcut starts autograd adds two gradients up. The classifier, the loss and the optimizer,
which are the same in both, are left out.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .shapes import ConvShape, conv_calls

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import cuda_emulation

CONVOLUTIONS = ("convolution", "data gradient", "weight gradient")


@dataclass
class Traffic:
    """Bytes by cause, and of the convolutions' three operators those of each call."""

    bytes: Counter[str] = field(default_factory=Counter)
    calls: list[tuple[int, int]] = field(default_factory=list)
    """(operations, bytes)"""

    @property
    def total(self) -> int:
        return sum(self.bytes.values())

    def convolve(self, cause: str, operations: int, elements: int) -> None:
        """Notes one of a convolution's operators, which moves so many 2-byte elements."""
        self.bytes[cause] += 2 * elements
        self.calls.append((operations, 2 * elements))

    def seconds(self, roofline: Callable[[float, float], float], bandwidth: float) -> float:
        """The sum of the convolutions' rooflines, and of what all else takes to move."""
        others = self.total - sum(moved for _, moved in self.calls)
        return sum(roofline(*call) for call in self.calls) + others / bandwidth


def training_step(model: str, batch: int) -> tuple[Traffic, Traffic]:
    """(fused, one after the other) of a network of bottlenecks, from its stem to its last block."""
    fused, apart = Traffic(), Traffic()
    known: dict[tuple[ConvShape, bool], tuple[int, int]] = {}
    for shape, passes in _with_passes(conv_calls(model)):
        if (shape, passes) not in known:
            known[shape, passes] = _scratch(shape, batch, passes)
        add_layer(fused, apart, shape, batch, *known[shape, passes], passes)
    return fused, apart


def _with_passes(shapes: list[ConvShape]) -> Iterator[tuple[ConvShape, bool]]:
    """Each convolution, and whether gradients pass a block's end in a convolution's kernel.

    That is the first of a block, after one whose shortcut is its input: true for it, and for the
    last of the block before.
    """
    for i, shape in enumerate(shapes):
        after = shapes[i + 1] if i + 1 < len(shapes) else None
        if shape.residual:
            yield shape, after is not None and starts_block(after)
        else:
            yield shape, i > 0 and starts_block(shape) and shapes[i - 1].residual


def add_layer(
    fused: Traffic,
    apart: Traffic,
    shape: ConvShape,
    batch: int,
    scratch: int,
    end_scratch: int,
    passes: bool = False,
) -> None:
    """Adds a convolution and what follows it, forward and backward; scratch of two operators."""
    x = batch * shape.in_channels * shape.height * shape.width
    y = batch * shape.out_channels * shape.out_height * shape.out_width
    w = shape.out_channels * (shape.in_channels // shape.groups) * shape.kernel**2
    work = shape.flops(batch)
    is_stem = shape.in_channels == 3  # an image has no gradient

    fused.convolve("convolution", work, x + y)
    apart.convolve("convolution", work, x + y + w)
    if not is_stem:
        # Gradient and output, from which the prologue's gradient is formed with the input.
        fused.convolve("data gradient", work, 2 * y + x + x * has_prologue(shape))
        apart.convolve("data gradient", work, y + x + w)
    fused.convolve("weight gradient", work, 2 * y + x)
    apart.convolve("weight gradient", work, y + x + w)
    # float32: packed (into scratch memory) for each operator, and the gradient.
    fused.bytes["weights"] += 4 * w * (3 - is_stem)
    apart.bytes["weights"] += (4 + 2) * w + (2 + 4) * w  # cast, and the gradient back
    fused.bytes["scratch memory, both ways"] += 2 * (scratch + end_scratch)
    apart.bytes["BatchNorm"] += 2 * (3 + 5) * y
    if shape.act != "none":
        apart.bytes["ReLU"] += 2 * (2 + 3) * y
    if shape.residual:
        # Backward reads gradient, output and shortcut, and writes one gradient for both sides.
        fused.bytes["block's end"] += 2 * (3 + 4 * (not passes)) * y
        apart.bytes["addition"] += 2 * 3 * y
    if starts_block(shape):
        fused.bytes["shortcut's gradient"] += 2 * x  # read by the data gradient
        fused.bytes["block's end"] += 2 * 2 * x * passes  # the output and shortcut before
        apart.bytes["shortcut's gradient"] += 2 * 3 * x
    if is_stem:
        fused.bytes["stem's end"] += 2 * (2 + 3) * y
        pooled = y // 4
        for side in (fused, apart):  # indices of 8 bytes
            side.bytes["max-pool"] += 2 * (2 * y + 2 * pooled) + 2 * 8 * pooled


def has_prologue(shape: ConvShape) -> bool:
    """Whether a convolution activates its input in training.

    The first one of a block and a shortcut's read what the block before has activated.
    """
    return shape.in_channels > 3 and (shape.kernel > 1 or shape.residual)


def starts_block(shape: ConvShape) -> bool:
    """Whether a convolution is a bottleneck's first one, whose input its shortcut reads too."""
    return shape.in_channels > 3 and not has_prologue(shape) and shape.act != "none"


def run_training(
    shape: ConvShape, batch: int, device: cuda_emulation.Device, passes: bool = False
) -> None:
    """Launches conv_stats of a layer and its backward, through the end of the block before."""
    c, k, kernel = shape.in_channels, shape.out_channels, shape.kernel
    x, y = _image(shape, batch, inside=True), _image(shape, batch)
    weight = torch.empty(k, c // shape.groups, kernel, kernel).half()
    prologue, vector = has_prologue(shape), torch.zeros(max(c, k))
    affine = [vector[:c] if prologue else None] * 3
    act = ("relu" if prologue else "none", 0.0)
    geometry = [shape.stride] * 2, [shape.padding] * 4, [1, 1], shape.groups
    device.conv_stats(x, *affine, *act, weight, *geometry)
    before: list[torch.Tensor] = []
    if passes:
        affine, act = [vector[:c]] * 3, ("relu", 0.0)
        before = [torch.empty_like(x) for _ in range(2)]
    wanted = (c > 3, c > 3 and (prologue or passes), True)
    scale = vector[:k] if shape.residual or shape.act == "none" else None  # before a block's end
    grad_in = torch.empty_like(x) if starts_block(shape) else None
    device.conv_stats_backward(
        torch.empty_like(y), *[vector[:k]] * 2, x, *affine, *act, weight, y, vector[:k], *geometry,
        *wanted, scale, grad_in, "direct", *before,
    )  # fmt: skip


def _scratch(shape: ConvShape, batch: int, passes: bool) -> tuple[int, int]:
    """Bytes of scratch memory of a convolution's operators, and of affine_add_act_backward."""
    device, end = (cuda_emulation.Device(emulate=False) for _ in range(2))
    run_training(shape, batch, device, passes and starts_block(shape))
    if (shape.residual and not passes) or shape.in_channels == 3:
        y, vector = _image(shape, batch), torch.zeros(shape.out_channels)
        residual = y if shape.residual else None
        end.affine_add_act_backward(y, y, *[vector] * 3, residual, *[None] * 3, "relu", 0.0, True)
    return device.scratch_bytes, end.scratch_bytes


def _image(shape: ConvShape, batch: int, *, inside: bool = False) -> torch.Tensor:
    """A layer's output, or the input; nothing is written to it."""
    size = (shape.out_height, shape.out_width, shape.out_channels)
    if inside:
        size = (shape.height, shape.width, shape.in_channels)
    return torch.empty(batch, *size).half().permute(0, 3, 1, 2)


def report(fused: Traffic, apart: Traffic, batch: int) -> list[str]:
    """The table of bytes, in Markdown."""
    causes = dict.fromkeys([*CONVOLUTIONS, *fused.bytes, *apart.bytes])
    lines = [f"| training step, batch {batch}, GB | fused | one after the other |"]
    lines.append("| --- | --- | --- |")
    for cause in causes:
        cells = [f"{side.bytes[cause] / 1e9:.2f}" if side.bytes[cause] else "" for side in
                 (fused, apart)]  # fmt: skip
        lines.append("| " + " | ".join([cause, *cells]) + " |")
    lines.append(f"| all | {fused.total / 1e9:.2f} | {apart.total / 1e9:.2f} |")
    return lines
