"""``live_bottleneck``: inference of a block whose weights may change between calls."""

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
    pair,
)
from .autocast import register_autocast
from .autograd import refuse_gradients
from .empty import empty_channels_last

_OPS = torch.ops.fastres


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
        ("weight", weights, FLOAT64 if double else checks.FLOAT_DTYPES[:3]),
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


@torch.library.register_fake("fastres::live_bottleneck")
def _live_bottleneck_fake(x: Tensor, *args: Any) -> Tensor:
    shape = checks.live_bottleneck_shape(x, *args)
    return empty_channels_last(x, shape)


register_autocast("live_bottleneck", (0,))  # x
