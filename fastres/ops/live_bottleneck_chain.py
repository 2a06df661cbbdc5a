"""``live_bottleneck_chain``: several ``live_bottleneck`` called once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..schema import checks
from ..schema.chain import LIVE_OP, run_live_chain
from .arguments import FLOAT64, IntOrPair, check_input, check_tensor, pair
from .autocast import register_autocast
from .autograd import refuse_gradients
from .empty import empty_channels_last

_OPS = torch.ops.fastres


def live_bottleneck_chain(
    x: Tensor,
    weights: Sequence[Tensor],
    scale: Tensor,
    shift: Tensor,
    *,
    convs: Sequence[int],
    algorithms: Sequence[str] | None = None,
    stride: Sequence[IntOrPair] | None = None,
    dilation: Sequence[IntOrPair] | None = None,
    groups: Sequence[int] | None = None,
    act: str = "relu",
) -> Tensor:
    """``live_bottleneck`` one after the other, each of what the one before returns.

    Args:
        x: [N, C, H, W], float32, bfloat16, float16 or float64; any strides.
        weights: of each block in turn those of conv1, conv2, conv3 and, where it has one, the
            shortcut's convolution, as ``live_bottleneck`` takes them.
        scale: of all these convolutions' output channels one after the other, float32 (float64 for
            float64 weights).
        shift: likewise, float32 (float64 for a float64 x).
        convs: of each block how many convolutions it has: 3, or 4 with one in the shortcut.
        algorithms: of each block's conv2, "direct" or "winograd"; None for "direct" everywhere.
        stride: of each block, int or (vertical, horizontal); None for 1 everywhere.
        dilation: of each block, int or (vertical, horizontal); None for 1 everywhere.
        groups: of each block's conv2; None for 1 everywhere.
        act: of all blocks: "none", "relu", "relu6", "silu" or "leaky_relu" (slope 0.01).

    Returns:
        [N, K3, OH, OW] of the last block in the dtype of x, with dense channels_last strides: the
        bits that the operators give one after the other.

    Raises:
        ValueError: shapes, devices or values that do not fit, or a gradient that would be needed;
            names the argument, and the block counted from 0.
        TypeError: a dtype other than these; names the argument.
    """
    device, vector_dtypes = check_input(LIVE_OP, x)
    double = x.dtype == torch.float64
    weights = list(weights)
    named = {f"weights[{i}]": weight for i, weight in enumerate(weights)}
    for name, weight in named.items():
        check_tensor(LIVE_OP, name, weight, FLOAT64 if double else checks.FLOAT_DTYPES[:3], device)
    check_tensor(LIVE_OP, "scale", scale, vector_dtypes, device)
    check_tensor(LIVE_OP, "shift", shift, vector_dtypes, device)
    refuse_gradients(LIVE_OP, x=x, scale=scale, shift=shift, **named)
    ones = [1] * len(convs)
    kernel = (reference if double else _OPS).live_bottleneck_chain
    return kernel(
        x,
        weights,
        scale,
        shift,
        list(algorithms or ["direct"] * len(convs)),
        list(convs),
        [step for value in stride or ones for step in pair("stride", value)],
        [step for value in dilation or ones for step in pair("dilation", value)],
        list(groups or ones),
        act,
    )


def _empty_block(x: Tensor, *arguments: Any) -> Tensor:
    shape = checks.live_bottleneck_shape(x, *arguments)
    return empty_channels_last(x, shape)


@torch.library.register_fake("fastres::live_bottleneck_chain")
def _live_bottleneck_chain_fake(x: Tensor, *arguments: Any) -> Tensor:
    return run_live_chain(_empty_block, x, *arguments)


register_autocast(LIVE_OP, (0,))  # x
