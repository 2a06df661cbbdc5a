"""grouped_bottleneck: its convolutions one after the other, each with its whole epilogue."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks, reference
from .convolve import Geometry, convolve, once_for_all_alike
from .pack_conv_weight import packed_operand

_CHECK = functools.partial(_checks.grouped_bottleneck_shape, read_packed=True)
_SLOPE = 0.01  # of leaky_relu in a block
_UNPADDED = (0, 0, 0, 0)


class Layer(NamedTuple):
    """A convolution's weight [K, C/groups, R, S] in the dtype of x, and its shift [K]."""

    weight: Tensor
    shift: Tensor


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

    def layer(packed: Tensor, shift: Tensor, c: int, kernel: int, groups: int) -> Layer:
        shape = (shift.shape[0], c // groups, kernel, kernel)
        return Layer(packed_operand(packed, shape, groups, x.dtype), shift)

    first = layer(packed1, shift1, x.shape[1], 1, 1)
    second = layer(packed2, shift2, shift1.shape[0], 3, groups)
    third = layer(packed3, shift3, shift2.shape[0], 1, 1)
    down = None
    if packed_down is not None and shift_down is not None:
        down = layer(packed_down, shift_down, x.shape[1], 1, 1)
    return bottleneck(x, (first, second, third), down, stride, dilation, groups, act)


def bottleneck(
    x: Tensor,
    layers: tuple[Layer, Layer, Layer],
    down: Layer | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    act: str,
) -> Tensor:
    """The block of three convolutions, with one in its shortcut or x itself."""
    point = Geometry((1, 1), _UNPADDED, (1, 1), 1)
    padding = (dilation[0], dilation[0], dilation[1], dilation[1])
    middle = Geometry(stride, padding, dilation, groups)
    shortcut = x
    if down is not None:
        shortcut = convolve(x, *down, None, Geometry(stride, _UNPADDED, (1, 1), 1), "none", _SLOPE)
    h = convolve(x, *layers[0], None, point, act, _SLOPE)
    h = convolve(h, *layers[1], None, middle, act, _SLOPE)
    return convolve(h, *layers[2], shortcut, point, act, _SLOPE)
