"""``live_conv_bn_act``, ``live_bottleneck``: inference of weights that may change between calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _checks, reference
from ._arguments import (
    FLOAT64,
    IntOrPair,
    check_input,
    check_tensor,
    conv_geometry,
    pair,
    pool_window,
)
from ._autocast import register_autocast
from ._autograd import refuse_gradients

_OPS = torch.ops.fastres


def live_conv_bn_act(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    stride: IntOrPair = 1,
    padding: str | IntOrPair = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    algorithm: str = "direct",
    act: str = "none",
    act_slope: float = 0.01,
) -> Tensor:
    """``conv_bn_act`` of a weight as it is: ``act(conv(x, weight * scale) + shift + residual)``.

    The weight is packed a panel of output channels at a time, right before it is used, so that no
    packed copy stands beside it. For inference: it has no gradients, ``conv_stats`` has.

    Args:
        x: [N, C, H, W], float32, bfloat16, float16 or float64; any strides.
        weight: [K, C/groups, R, S], float32, bfloat16 or float16; float64 with a float64 x.
            Contiguous or channels_last; other strides cost a copy.
        scale: [K], float32 (float64 for a float64 weight), or None for 1.
        shift: [K], float32 (float64 for a float64 x), or None for 0.
        residual: [N, K, OH, OW] in the dtype of x, any strides, or None.
        stride: int or (vertical, horizontal).
        padding: int, (vertical, horizontal), (top, bottom, left, right), "same" or "valid".
        dilation: int or (vertical, horizontal).
        groups: divides C and K.
        algorithm: "direct" or "winograd", as for ``pack_conv_weight``.
        act: "none", "relu", "relu6", "silu" or "leaky_relu".
        act_slope: leaky_relu's negative slope.

    Returns:
        [N, K, OH, OW] in the dtype of x, with dense channels_last strides. Arithmetic is float32
        (float64 for float64), rounded once.

    Raises:
        ValueError: shapes, devices or values that do not fit, or a gradient that would be needed;
            names the argument.
        TypeError: a dtype other than these; names the argument.
    """
    op = "live_conv_bn_act"
    device, vector_dtypes = check_input(op, x)
    double = x.dtype == torch.float64
    check_tensor(op, "weight", weight, FLOAT64 if double else _checks.FLOAT_DTYPES[:3], device)
    if scale is not None:
        check_tensor(op, "scale", scale, vector_dtypes, device)
    if weight.dim() != 4:
        raise ValueError(
            f"{op}: weight must be 4-D [K, C/groups, R, S], got shape {list(weight.shape)}"
        )
    if shift is None:
        shift = torch.zeros(weight.shape[0], dtype=vector_dtypes[0], device=device)
    check_tensor(op, "shift", shift, vector_dtypes, device)
    if residual is not None:
        autocast = torch.is_autocast_enabled(device.type)
        dtypes = _checks.FLOAT_DTYPES if autocast else (x.dtype,)
        check_tensor(op, "residual", residual, dtypes, device)
    refuse_gradients(op, x=x, weight=weight, scale=scale, shift=shift, residual=residual)
    kernel = (reference if double else _OPS).live_conv_bn_act
    return kernel(
        x,
        weight,
        scale,
        shift,
        residual,
        *conv_geometry(op, tuple(weight.shape[2:]), stride, padding, dilation),
        groups,
        algorithm,
        act,
        act_slope,
    )


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
    check_tensor(op, "weight", weight, FLOAT64 if double else _checks.FLOAT_DTYPES[:3], device)
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


def live_bottleneck(
    x: Tensor,
    weight1: Tensor,
    scale1: Tensor | None,
    shift1: Tensor,
    weight2: Tensor,
    scale2: Tensor | None,
    shift2: Tensor,
    weight3: Tensor,
    scale3: Tensor | None,
    shift3: Tensor,
    weight_down: Tensor | None = None,
    scale_down: Tensor | None = None,
    shift_down: Tensor | None = None,
    *,
    stride: IntOrPair = 1,
    dilation: IntOrPair = 1,
    groups: int = 1,
    algorithm: str = "direct",
    act: str = "relu",
) -> Tensor:
    """``grouped_bottleneck`` of weights as they are, each times its scale.

    Large images go through the block depth-first, with the block's weights packed before; small
    ones layer by layer, where a panel of output channels is packed right before it is used. For
    inference: it has no gradients.

    Args:
        x: [N, C, H, W], float32, bfloat16, float16 or float64; any strides.
        weight1: conv1's weight [K1, C, 1, 1], float32, bfloat16 or float16; float64 with a float64
            x. Contiguous or channels_last; other strides cost a copy.
        scale1: [K1], float32 (float64 for a float64 weight), or None for 1.
        shift1: [K1], float32 (float64 for a float64 x).
        weight2: conv2's weight [K2, K1/groups, 3, 3].
        scale2: [K2], or None.
        shift2: [K2].
        weight3: conv3's weight [K3, K2, 1, 1].
        scale3: [K3], or None.
        shift3: [K3].
        weight_down: the shortcut's weight [K3, C, 1, 1], or None for x itself.
        scale_down: [K3], or None.
        shift_down: [K3], with ``weight_down``.
        stride: of conv2 and the shortcut, int or (vertical, horizontal).
        dilation: of conv2, int or (vertical, horizontal).
        groups: of conv2.
        algorithm: of conv2, "direct" or "winograd", as for ``pack_conv_weight``.
        act: "none", "relu", "relu6", "silu" or "leaky_relu" (slope 0.01).

    Returns:
        [N, K3, OH, OW] in the dtype of x, with dense channels_last strides. Arithmetic is float32
        (float64 for float64), rounded once.

    Raises:
        ValueError: shapes, devices or values that do not fit, or a gradient that would be needed;
            names the argument.
        TypeError: a dtype other than these; names the argument.
    """
    op = "live_bottleneck"
    device, vector_dtypes = check_input(op, x)
    double = x.dtype == torch.float64
    weights = {"1": weight1, "2": weight2, "3": weight3, "_down": weight_down}
    scales = {"1": scale1, "2": scale2, "3": scale3, "_down": scale_down}
    shifts = {"1": shift1, "2": shift2, "3": shift3, "_down": shift_down}
    for name, group, dtypes in (
        ("weight", weights, FLOAT64 if double else _checks.FLOAT_DTYPES[:3]),
        ("scale", scales, vector_dtypes),
        ("shift", shifts, vector_dtypes),
    ):
        given = {f"{name}{conv}": value for conv, value in group.items() if value is not None}
        for argument, value in given.items():
            check_tensor(op, argument, value, dtypes, device)
        refuse_gradients(op, x=x, **given)
    kernel = (reference if double else _OPS).live_bottleneck
    return kernel(
        *(x, weight1, scale1, shift1, weight2, scale2, shift2, weight3, scale3, shift3),
        *(weight_down, scale_down, shift_down, pair("stride", stride)),
        *(pair("dilation", dilation), groups, algorithm, act),
    )


@torch.library.register_fake("fastres::live_conv_bn_act")
def _live_conv_bn_act_fake(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    algorithm: str,
    act: str,
    act_slope: float,
) -> Tensor:
    n, c, h, w = _checks.live_conv_bn_act_shape(
        x, weight, scale, shift, residual, stride, padding, dilation, groups, algorithm, act
    )
    return x.new_empty_strided((n, c, h, w), (h * w * c, 1, w * c, c))


register_autocast("live_conv_bn_act", (0, 4))  # x, residual; kernels take the weight as it is


@torch.library.register_fake("fastres::live_conv_max_pool")
def _live_conv_max_pool_fake(
    x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor, *arguments: Any
) -> Tensor:
    op = "live_conv_max_pool"
    stride, padding, dilation, groups, act, _, *pool = arguments
    convolved = _checks.live_conv_bn_act_shape(
        x, weight, scale, shift, None, stride, padding, dilation, groups, "direct", act, op=op
    )
    n, c, h, w = _checks.conv_max_pool_shape(op, convolved, *pool)
    return x.new_empty_strided((n, c, h, w), (h * w * c, 1, w * c, c))


register_autocast("live_conv_max_pool", (0,))  # x


@torch.library.register_fake("fastres::live_bottleneck")
def _live_bottleneck_fake(x: Tensor, *args: Any) -> Tensor:
    n, c, h, w = _checks.live_bottleneck_shape(x, *args)
    return x.new_empty_strided((n, c, h, w), (h * w * c, 1, w * c, c))


register_autocast("live_bottleneck", (0,))  # x
