"""grouped_bottleneck: its convolutions one after the other, each with its whole epilogue."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..composed import LEAKY_SLOPE, Geometry, Layer, bottleneck
from ..schema import checks
from .convolve import convolve, once_for_all_alike
from .pack_conv_weight import packed_operand

_CHECK = functools.partial(checks.grouped_bottleneck_shape, read_packed=True)


def layer(weight: Tensor, shift: Tensor) -> Layer:
    """A convolution of a block: its weight [K, C/groups, R, S] in the dtype of x, its shift [K]."""

    def run(x: Tensor, residual: Tensor | None, geometry: Geometry, act: str) -> Tensor:
        return convolve(x, weight, shift, residual, geometry, act, LEAKY_SLOPE)

    return run


def grouped_bottleneck(
    x: Tensor,
    packed1: Tensor,
    shift1: Tensor,
    packed2: Tensor,
    shift2: Tensor,
    packed3: Tensor,
    shift3: Tensor,
    packed_down: Tensor | None,
    shift_down: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    act: str,
) -> Tensor:
    """``act(conv3(act(conv2(act(conv1(x))))) + shortcut)``, see ``reference.grouped_bottleneck``.

    Between the convolutions activations are rounded to the dtype of x, as eager PyTorch does.
    """
    tensors = (x, packed1, shift1, packed2, shift2, packed3, shift3, packed_down, shift_down)
    options = (stride, dilation, groups, act)
    if x.dtype == torch.float64:
        return reference.grouped_bottleneck(*tensors, *options)
    once_for_all_alike(_CHECK, tensors, options)

    def packed_layer(packed: Tensor, shift: Tensor, c: int, kernel: int, groups: int) -> Layer:
        shape = (shift.shape[0], c // groups, kernel, kernel)
        return layer(packed_operand(packed, shape, groups, x.dtype), shift)

    first = packed_layer(packed1, shift1, x.shape[1], 1, 1)
    second = packed_layer(packed2, shift2, shift1.shape[0], 3, groups)
    third = packed_layer(packed3, shift3, shift2.shape[0], 1, 1)
    down = None
    if packed_down is not None and shift_down is not None:
        down = packed_layer(packed_down, shift_down, x.shape[1], 1, 1)
    return bottleneck((first, second, third), down, x, *options)
