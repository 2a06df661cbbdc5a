"""``live_conv_bn_act``: inference of a weight that may change between calls."""

from __future__ import annotations

from collections.abc import Sequence

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
)
from .autocast import register_autocast
from .autograd import refuse_gradients
from .empty import empty_channels_last

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
    check_tensor(op, "weight", weight, FLOAT64 if double else checks.FLOAT_DTYPES[:3], device)
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
        dtypes = checks.FLOAT_DTYPES if autocast else (x.dtype,)
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
    shape = checks.live_conv_bn_act_shape(
        x, weight, scale, shift, residual, stride, padding, dilation, groups, algorithm, act
    )
    return empty_channels_last(x, shape)


register_autocast("live_conv_bn_act", (0, 4))  # x, residual; kernels take the weight as it is
