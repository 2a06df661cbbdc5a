"""Convolutions to test, and what eager PyTorch and float64 make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastres import ops, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ACTIVATIONS = ("none", "relu", "relu6", "silu", "leaky_relu")
LAYOUTS = ("nchw", "channels_last", "sliced", "channel_sliced", "transposed", "expanded")
SLOPE = 0.2
FEW = 256  # errors of fewer elements than this do not average out
# The contract's, times eager's error.
FACTORS = {"direct": 2.0, "winograd": 4.0, "bfloat16": 2.0}


class ConvCase(NamedTuple):
    """A convolution: x is [n, c, h, w], the weight [k, c/groups, r, s]."""

    c: int
    k: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    h: int = 13
    w: int = 7
    n: int = 2
    algorithm: str = "direct"

    def arguments(self) -> dict[str, Any]:
        """What conv_bn_act takes by keyword."""
        return {
            "kernel_size": self.kernel,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }


def same(c: int, k: int, kernel: int = 3, stride: int = 1, groups: int = 1, **kw: Any) -> ConvCase:
    """The usual convolution: square, padded by half the kernel."""
    pad = (kernel // 2,) * 4
    return ConvCase(c, k, (kernel, kernel), (stride, stride), pad, groups=groups, **kw)


# Every kernel of the library, by name; sizes odd, so that tiles end in remainders.
PATHS: dict[str, ConvCase] = {
    "1x1": same(17, 33, 1),
    "1x1 wide": same(130, 65, 1, h=5, w=5),
    "1x1/2": same(33, 17, 1, 2),
    "3x3": same(5, 17),
    "3x3 wide": same(64, 48, h=14, w=14),
    "1x1 of 72": same(72, 104, 1, h=9, w=7),
    "1x1 of 640": same(640, 72, 1, h=5, w=9),
    "1x1/2 of 72": same(72, 104, 1, 2),
    "1x1 of 2048": same(2048, 33, 1, h=7, w=7, n=1),
    "1x1 of 1100 to 160": same(1100, 160, 1, h=7),
    "3x3 of 512": same(512, 17, h=7, w=7, n=1),
    "3x3 of 96, /2": same(96, 72, 3, 2),
    "3x3 of 264, /2": same(264, 136, 3, 2, h=29, w=29, n=1),
    "3x3 of 144 to 136": same(144, 136, h=14, w=14, n=1),
    "3x3 of 72, dilated": ConvCase(72, 56, padding=(2, 2, 3, 3), dilation=(2, 3)),
    "3x3 of 64, dilated, /2": ConvCase(64, 64, (3, 3), (2, 2), (2, 2, 2, 2), (3, 2)),
    "4x1/3 of 64 a group": ConvCase(192, 72, (4, 1), (3, 3), groups=3, w=11),
    "1x2/3 of 96 a group": ConvCase(384, 96, (1, 2), (3, 3), groups=4, h=12, w=17),
    "3x3 winograd": same(17, 33, algorithm="winograd"),
    "3x3 winograd, even": same(64, 48, h=14, w=10, algorithm="winograd"),
    "3x3 winograd of 512": same(512, 33, h=7, w=7, n=1, algorithm="winograd"),
    "3x3 winograd, large weights": same(264, 250, h=13, w=9, n=3, algorithm="winograd"),
    "3x3 winograd, unpadded": ConvCase(16, 32, h=6, w=9, algorithm="winograd"),
    "3x3/2": same(17, 33, 3, 2),
    "3x3 groups of 1": same(17, 17, groups=17),
    "3x3 groups of 1, /2": same(33, 33, 3, 2, 33),
    "3x3 groups of 2": same(34, 34, groups=17),
    "3x3 groups of 4": same(20, 20, groups=5),
    "3x3 groups of 4, /2": same(128, 128, 3, 2, 32),
    "3x3 groups of 8": same(24, 24, groups=3),
    "3x3 groups of 8, /2": same(40, 40, 3, 2, 5),
    "3x3 groups of 16": same(48, 48, groups=3),
    "3x3 groups of 16, /2": same(32, 32, 3, 2, 2),
    "3x3 groups of 32": same(96, 96, groups=3),
    "3x3 groups of 32, /2": same(64, 64, 3, 2, 2),
    "3x3 groups of 64": same(128, 128, groups=2),
    "3x3 groups of 4, two blocks": same(96, 96, groups=24),
    "3x3 groups of 8, two blocks": same(160, 160, groups=20, n=1),
    "3x3 groups of 16, two blocks": same(96, 96, groups=6),
    "7x7/2 stem": same(3, 64, 7, 2, h=33, w=29),
    "7x7/2 stem, 17 channels": same(3, 17, 7, 2, h=17, w=13),
    "5x5": same(5, 17, 5),
    "5x5 depthwise": same(17, 17, 5, groups=17),
    "1x7": ConvCase(17, 5, (1, 7), padding=(0, 0, 3, 3)),
    "7x1": ConvCase(5, 17, (7, 1), padding=(3, 3, 0, 0)),
    "2x2/2": ConvCase(5, 17, (2, 2), (2, 2)),
    "4x4": ConvCase(3, 5, (4, 4), padding=(1, 2, 2, 1)),
    "3x3 dilated": ConvCase(17, 17, padding=(2, 2, 2, 2), dilation=(2, 2)),
    "3x3 dilated, groups of 4": ConvCase(20, 20, padding=(2, 2, 3, 3), dilation=(2, 3), groups=5),
    "3x3/(2, 3)": ConvCase(17, 5, stride=(2, 3), padding=(1, 1, 1, 1)),
    "groups of 3": same(9, 9, groups=3),
    "groups of 6": same(18, 18, groups=3),
    "groups of 24": same(48, 48, groups=2),
    "groups of 3 to 5": same(6, 10, groups=2),
    "groups of 4 to 8": same(12, 24, groups=3),
    "groups of 1 to 3": same(5, 15, groups=5),
    "groups of 17 to 33": same(34, 66, groups=2),
    "asymmetric padding": ConvCase(5, 17, padding=(0, 2, 3, 1)),
    "asymmetric padding, groups of 4": ConvCase(12, 12, padding=(2, 0, 1, 3), groups=3),
    "padding beyond the kernel": ConvCase(3, 5, (2, 2), padding=(3, 3, 3, 3), h=2, w=1),
}

# Of bfloat16, packed as such.
BFLOAT16: dict[str, ConvCase] = {
    "1x1": same(64, 96, 1, algorithm="bfloat16"),
    "1x1/2": same(64, 32, 1, 2, algorithm="bfloat16"),
    "1x1 of 640": same(640, 64, 1, h=5, w=9, algorithm="bfloat16"),
    "1x1 of more than is kept": same(2048, 512, 1, h=7, w=7, n=1, algorithm="bfloat16"),
    "3x3": same(64, 64, algorithm="bfloat16"),
    "3x3 of more than tiles take": same(1536, 32, h=3, w=5, n=1, algorithm="bfloat16"),
    "3x3 of 96, /2": same(96, 160, 3, 2, algorithm="bfloat16"),
    "3x3 dilated": ConvCase(64, 96, padding=(2, 2, 3, 3), dilation=(2, 3), algorithm="bfloat16"),
    "3x3 groups of 32": same(96, 96, groups=3, algorithm="bfloat16"),
}

# Rows too long for the level-2 cache to hold all of them.
BANDS: dict[str, ConvCase] = {
    "3x3": same(128, 16, h=37, w=61, n=1),
    "3x3 winograd": same(128, 48, h=37, w=61, n=1, algorithm="winograd"),
    "3x3 winograd of many images": same(512, 33, h=7, w=5, n=13, algorithm="winograd"),
    # Weights beyond the cache: two images at a time, then one; two rows a tile, then one.
    "3x3/2 of many images": same(520, 513, 3, 2, h=9, w=11, n=3),
    "3x3/2, groups of 8": same(256, 256, 3, 2, 32, h=65, w=37, n=1),
    "asymmetric padding": ConvCase(160, 5, padding=(3, 0, 1, 2), h=61, w=37, n=1),
}


class Inputs(NamedTuple):
    """The tensors of a case; residual may be None."""

    x: Tensor
    weight: Tensor
    scale: Tensor
    shift: Tensor
    residual: Tensor | None


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The values of ``x`` (the first pixel's everywhere if expanded) with other strides."""
    n, c, h, w = x.shape
    if layout == "nchw":
        return x.contiguous()
    if layout == "channels_last":
        return reference.channels_last(x)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "expanded":
        return x[:, :, :1, :1].expand(n, c, h, w)
    # NaN around the values shows a kernel that reads beside them.
    if layout == "sliced":
        buffer = x.new_full((n + 1, c + 2, h + 1, 2 * w + 1), float("nan"))
        view = buffer[1:, 1:-1, 1:, 1::2]
    else:
        buffer = x.new_full((n, h, w, c + 3), float("nan"))
        view = buffer[..., 1 : c + 1].permute(0, 3, 1, 2)
    return view.copy_(x)


def make_inputs(
    case: ConvCase,
    dtype: torch.dtype = torch.float32,
    layout: str = "channels_last",
    residual_layout: str | None = None,
) -> Inputs:
    """Random tensors; all values well within float16's range."""
    x = laid_out(torch.randn(case.n, case.c, case.h, case.w).to(dtype), layout)
    fan_in = case.c // case.groups * case.kernel[0] * case.kernel[1]
    weight = torch.randn(case.k, case.c // case.groups, *case.kernel) / fan_in**0.5
    scale, shift = torch.rand(case.k) + 0.5, torch.randn(case.k)
    residual = None
    if residual_layout is not None:
        shape = eager(case, Inputs(x[:, :, :, :], weight.to(dtype), scale, shift, None)).shape
        residual = laid_out(torch.randn(shape).to(dtype), residual_layout)
    return Inputs(x, weight.to(dtype), scale, shift, residual)


def eager(case: ConvCase, inputs: Inputs, act: str = "none") -> Tensor:
    """Convolution, BatchNorm (as its affine), addition and activation, one after the other."""
    x, weight, scale, shift, residual = inputs
    top, bottom, left, right = case.padding
    y = F.conv2d(
        reference.with_usual_strides(F.pad(x, (left, right, top, bottom))),
        weight,
        None,
        case.stride,
        0,
        case.dilation,
        case.groups,
    )
    # Like F.batch_norm on a reduced dtype: float32 parameters, one rounding.
    y = (y * scale[:, None, None] + shift[:, None, None]).to(x.dtype)
    if residual is not None:
        y = y + residual
    return reference.apply_act(y, act, SLOPE)


def exact(case: ConvCase, inputs: Inputs, act: str = "none") -> Tensor:
    """The same in float64."""
    return eager(case, Inputs(*(t if t is None else t.double() for t in inputs)), act)


def magnitude(case: ConvCase, inputs: Inputs) -> Tensor:
    """The sums of the absolute values of the terms of each output."""
    return exact(case, Inputs(*(t if t is None else t.abs() for t in inputs)))


def fused(case: ConvCase, inputs: Inputs, act: str = "none") -> Tensor:
    """The operator under test, on the same tensors."""
    packed = ops.pack_conv_weight(inputs.weight, inputs.scale, case.groups, case.algorithm)
    return ops.conv_bn_act(
        inputs.x, packed, inputs.shift, inputs.residual, **case.arguments(), act=act,
        act_slope=SLOPE,
    )  # fmt: skip


def check_case(
    assert_accurate: Callable[..., None],
    case: ConvCase,
    inputs: Inputs,
    act: str = "none",
    operator: Callable[[ConvCase, Inputs, str], Tensor] = fused,
) -> Tensor:
    """Runs the operator, checks its value, dtype and strides, and returns its output."""
    out, expected = operator(case, inputs, act), exact(case, inputs, act)
    _, k, h, w = expected.shape
    assert out.stride() == (h * w * k, 1, w * k, k)
    assert_accurate(
        out,
        eager(case, inputs, act),
        expected,
        factor=FACTORS[case.algorithm],
        magnitude=lambda: magnitude(case, inputs),
    )
    return out


def check_infinite_weight(operator: Callable[..., Tensor], channel: int) -> None:
    """Of one output channel, whose panel matrix tiles split while they multiply the one before.

    And not of the first part of the reduction.
    """
    for name in ("1x1 of 1100 to 160", "3x3 of 144 to 136"):
        case = PATHS[name]
        inputs = make_inputs(case)
        inputs.weight[min(channel, case.k - 1), case.c // 2] = float("inf")
        out, expected = operator(case, inputs), eager(case, inputs)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4, equal_nan=True)
