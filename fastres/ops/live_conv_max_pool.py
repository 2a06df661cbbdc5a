"""``live_conv_max_pool``: a stem of a weight that may change between calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..schema import checks
from .arguments import (
    FLOAT64,
    IntOrPair,
    check_input,
    check_tensor,
    conv_geometry,
    pool_window,
)
from .autocast import register_autocast
from .autograd import refuse_gradients
from .empty import empty_channels_last

_OPS = torch.ops.fastres


def live_conv_max_pool(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor,
    *,
    stride: IntOrPair = 1,
    padding: str | IntOrPair = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    act: str = "none",
    act_slope: float = 0.01,
    pool_size: IntOrPair,
    pool_stride: IntOrPair | None = None,
    pool_padding: IntOrPair = 0,
) -> Tensor:
    """``max_pool`` of ``live_conv_bn_act``: a network's stem. For inference: it has no gradients.

    Args:
        x: [N, C, H, W], float32, bfloat16, float16 or float64; any strides.
        weight: [K, C/groups, R, S], float32, bfloat16 or float16; float64 with a float64 x.
        scale: [K], float32 (float64 for a float64 weight), or None for 1.
        shift: [K], float32 (float64 for a float64 x).
        stride: int or (vertical, horizontal).
        padding: int, (vertical, horizontal), (top, bottom, left, right), "same" or "valid".
        dilation: int or (vertical, horizontal).
        groups: divides C and K.
        act: "none", "relu", "relu6", "silu" or "leaky_relu".
        act_slope: leaky_relu's negative slope.
        pool_size: of a window, int or (vertical, horizontal).
        pool_stride: int or (vertical, horizontal); None for pool_size.
        pool_padding: int or (vertical, horizontal), at most half of pool_size.

    Returns:
        [N, K, OH, OW] in the dtype of x, with dense channels_last strides.

    Raises:
        ValueError: shapes, devices or values that do not fit, or a gradient that would be needed;
            names the argument.
        TypeError: a dtype other than these; names the argument.
    """
    op = "live_conv_max_pool"
    device, vector_dtypes = check_input(op, x)
    double = x.dtype == torch.float64
    check_tensor(op, "weight", weight, FLOAT64 if double else checks.FLOAT_DTYPES[:3], device)
    if weight.dim() != 4:
        raise ValueError(
            f"{op}: weight must be 4-D [K, C/groups, R, S], got shape {list(weight.shape)}"
        )
    if scale is not None:
        check_tensor(op, "scale", scale, vector_dtypes, device)
    check_tensor(op, "shift", shift, vector_dtypes, device)
    refuse_gradients(op, x=x, weight=weight, scale=scale, shift=shift)
    kernel = (reference if double else _OPS).live_conv_max_pool
    return kernel(
        x,
        weight,
        scale,
        shift,
        *conv_geometry(op, tuple(weight.shape[2:]), stride, padding, dilation),
        groups,
        act,
        act_slope,
        *pool_window(pool_size, pool_stride, pool_padding, "pool_"),
    )


@torch.library.register_fake("fastres::live_conv_max_pool")
def _live_conv_max_pool_fake(
    x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor, *arguments: Any
) -> Tensor:
    op = "live_conv_max_pool"
    stride, padding, dilation, groups, act, _, *pool = arguments
    convolved = checks.live_conv_bn_act_shape(
        x, weight, scale, shift, None, stride, padding, dilation, groups, "direct", act, op=op
    )
    shape = checks.conv_max_pool_shape(op, convolved, *pool)
    return empty_channels_last(x, shape)


register_autocast("live_conv_max_pool", (0,))  # x
