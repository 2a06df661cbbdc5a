"""conv_bn_act: cuDNN's convolution with bias, shortcut and ReLU."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..schema import checks
from .convolve import convolve, once_for_all_alike
from .pack_conv_weight import packed_operand

_CHECK = functools.partial(checks.conv_bn_act_shape, read_packed=True)


def conv_bn_act(
    x: Tensor,
    packed: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    act: str,
    act_slope: float,
) -> Tensor:
    """``act(conv(x) + shift + residual)``, see ``reference.conv_bn_act``."""
    if x.dtype == torch.float64:
        return reference.conv_bn_act(
            x, packed, shift, residual, kernel_size, stride, padding, dilation, groups, act,
            act_slope,
        )  # fmt: skip
    once_for_all_alike(
        _CHECK,
        (x, packed, shift, residual),
        (kernel_size, stride, padding, dilation, groups, act),
    )
    shape = (shift.shape[0], x.shape[1] // groups, *kernel_size)
    weight = packed_operand(packed, shape, groups, x.dtype)
    geometry = (stride, padding, dilation, groups)
    return convolve(x, weight, shift, residual, geometry, act, act_slope)
