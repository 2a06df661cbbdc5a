"""Bottlenecks to test, and what eager PyTorch and float64 make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from conv_case import FACTORS, laid_out
from torch import Tensor
from torch.nn import functional as F

from fastres import ops, reference


class BottleneckCase(NamedTuple):
    """A bottleneck: c channels in, ``width`` inside, k out; a shortcut convolution if ``down``."""

    c: int
    width: int
    k: int
    groups: int = 1
    stride: int = 1
    dilation: int = 1
    down: bool = True
    h: int = 13
    w: int = 7
    n: int = 2
    algorithm: str = "direct"

    def convs(self) -> list[tuple[int, int, int, int]]:
        """(in, out, kernel, groups) of conv1, conv2, conv3 and the shortcut's."""
        last = [(self.c, self.k, 1, 1)] if self.down else []
        return [
            (self.c, self.width, 1, 1),
            (self.width, self.width, 3, self.groups),
            (self.width, self.k, 1, 1),
            *last,
        ]


BLOCKS: dict[str, BottleneckCase] = {
    "one channel": BottleneckCase(1, 1, 1),
    "ResNet": BottleneckCase(64, 16, 64, down=False),
    "ResNet, winograd": BottleneckCase(64, 16, 64, down=False, algorithm="winograd"),
    "winograd, even": BottleneckCase(17, 33, 65, h=8, w=12, algorithm="winograd"),
    "ResNet, first": BottleneckCase(33, 17, 65),
    "ResNet, /2": BottleneckCase(48, 32, 96, stride=2),
    "ResNeXt 4": BottleneckCase(40, 20, 40, 5, down=False),
    "ResNeXt 4, /2": BottleneckCase(24, 128, 256, 32, stride=2),
    "ResNeXt 8": BottleneckCase(17, 24, 33, 3),
    "ResNeXt 16": BottleneckCase(64, 48, 64, 3, down=False),
    "ResNeXt 32, /2": BottleneckCase(33, 64, 128, 2, stride=2),
    "depthwise": BottleneckCase(17, 33, 17, 33, down=False),
    "groups of 3": BottleneckCase(17, 9, 17, 3, down=False),
    "groups of 6, /2": BottleneckCase(17, 18, 5, 3, stride=2),
    "dilated": BottleneckCase(32, 16, 32, 4, dilation=2, down=False),
    "dilated, /2": BottleneckCase(16, 8, 32, stride=2, dilation=3),
    "one pixel": BottleneckCase(17, 8, 17, 2, down=False, h=1, w=1),
    "one pixel, /2": BottleneckCase(17, 8, 33, 2, stride=2, h=1, w=1),
    "tall": BottleneckCase(16, 8, 16, 2, down=False, h=61, w=3),
    "wide": BottleneckCase(16, 8, 32, 2, stride=2, h=2, w=67),
    # Sums of 2048 and of 4608 products.
    "last of ResNet-50": BottleneckCase(2048, 512, 2048, down=False, h=3, w=5, n=1),
}

# Rows too long for the level-2 cache to hold the inner activation.
BANDS: dict[str, BottleneckCase] = {
    "several bands": BottleneckCase(16, 256, 16, 64, down=False, h=37, w=61, n=1),
    "several bands, winograd": BottleneckCase(
        16, 128, 16, down=False, h=37, w=61, n=1, algorithm="winograd"
    ),
    "winograd with large weights": BottleneckCase(
        16, 256, 16, down=False, h=37, w=61, n=1, algorithm="winograd"
    ),
    "several bands, /2": BottleneckCase(17, 264, 24, 33, stride=2, h=65, w=67, n=1),
    "several bands, dilated": BottleneckCase(8, 192, 8, 3, dilation=2, down=False, h=67, w=61, n=1),
}

# Each block takes what the one before gives; odd sizes, every kind of shortcut and 3x3.
CHAIN = [
    BottleneckCase(17, 16, 33),
    BottleneckCase(33, 24, 33, 3, down=False),
    BottleneckCase(33, 32, 64, 8, stride=2),
    BottleneckCase(64, 16, 64, down=False, algorithm="winograd"),
    BottleneckCase(64, 20, 64, 5, dilation=2, down=False),
]
LONG = [BottleneckCase(24, 8, 24, 2, down=False)] * 13


class Constants(NamedTuple):
    """Weight, scale and shift of each convolution."""

    weights: list[Tensor]
    scales: list[Tensor]
    shifts: list[Tensor]

    def map(self, function: Callable[[Tensor], Tensor]) -> Constants:
        return Constants(*([function(t) for t in tensors] for tensors in self))


def make_block(
    case: BottleneckCase, dtype: torch.dtype = torch.float32, layout: str = "channels_last"
) -> tuple[Tensor, Constants]:
    """Random input and constants."""
    x = laid_out(torch.randn(case.n, case.c, case.h, case.w).to(dtype), layout)
    weights, scales, shifts = [], [], []
    for c, k, kernel, groups in case.convs():
        fan_in = c // groups * kernel * kernel
        weights.append((torch.randn(k, c // groups, kernel, kernel) / fan_in**0.5).to(dtype))
        scales.append(torch.rand(k) + 0.5)
        shifts.append(torch.randn(k))
    return x, Constants(weights, scales, shifts)


def eager_block(case: BottleneckCase, x: Tensor, constants: Constants, act: str) -> Tensor:
    """The bottleneck, layer by layer, in the dtype of x."""
    strides = [1, case.stride, 1, case.stride]
    steps = zip(case.convs(), strides, *constants, strict=False)

    def conv(x: Tensor) -> Tensor:
        (_, _, kernel, groups), stride, weight, scale, shift = next(steps)
        padding, dilation = (case.dilation, case.dilation) if kernel == 3 else (0, 1)
        y = F.conv2d(x, weight, None, stride, padding, dilation, groups)
        return (y * scale[:, None, None] + shift[:, None, None]).to(x.dtype)

    y = reference.apply_act(conv(x), act)
    y = conv(reference.apply_act(conv(y), act))
    return reference.apply_act(y + (conv(x) if case.down else x), act)


def block_arguments(case: BottleneckCase, constants: Constants) -> list[Tensor]:
    """packed1, shift1, packed2, ... of the operator."""
    arguments = []
    for (_, _, kernel, groups), *tensors in zip(case.convs(), *constants, strict=True):
        weight, scale, shift = tensors
        algorithm = case.algorithm if kernel == 3 else "direct"
        arguments += [ops.pack_conv_weight(weight, scale, groups, algorithm), shift]
    return arguments


def fused_block(case: BottleneckCase, x: Tensor, constants: Constants, act: str) -> Tensor:
    """The operator under test."""
    return ops.grouped_bottleneck(
        x,
        *block_arguments(case, constants),
        stride=case.stride,
        dilation=case.dilation,
        groups=case.groups,
        act=act,
    )


def check_block(
    assert_accurate: Callable[..., None],
    case: BottleneckCase,
    x: Tensor,
    constants: Constants,
    act: str = "relu",
    operator: Callable[[BottleneckCase, Tensor, Constants, str], Tensor] = fused_block,
) -> Tensor:
    """Runs the operator, checks its value, dtype and strides, and returns its output."""
    wide = constants.map(Tensor.double)
    out, exact = operator(case, x, constants, act), eager_block(case, x.double(), wide, act)
    _, k, h, w = exact.shape
    assert out.stride() == (h * w * k, 1, w * k, k)
    assert_accurate(
        out,
        eager_block(case, x, constants, act),
        exact,
        factor=FACTORS[case.algorithm],
        magnitude=lambda: eager_block(case, x.double().abs(), wide.map(Tensor.abs), "none"),
    )
    return out
