"""Operators made of others, for devices that have no kernel of their own for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .schema import checks
from .schema.chain import run_chain, run_live_chain

_OPS = torch.ops.fastres

#: Of a convolution: stride, padding (top, bottom, left, right), dilation and groups.
Geometry = tuple[Sequence[int], Sequence[int], Sequence[int], int]

#: ``layer(x, residual, geometry, act)``: a convolution of a block with its whole epilogue.
Layer = Callable[[Tensor, Tensor | None, Geometry, str], Tensor]

LEAKY_SLOPE = 0.01  # of leaky_relu in a block


def bottleneck(
    layers: tuple[Layer, Layer, Layer],
    down: Layer | None,
    x: Tensor,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    act: str,
) -> Tensor:
    """``grouped_bottleneck`` of its convolutions one after the other.

    Args:
        layers: the three of the block.
        down: the shortcut's, or None for x itself.
        x: the other arguments are those of ``reference.grouped_bottleneck``.
        stride: likewise.
        dilation: likewise.
        groups: likewise.
        act: likewise.
    """
    one, unpadded = (1, 1), (0, 0, 0, 0)
    padding = (dilation[0], dilation[0], dilation[1], dilation[1])
    shortcut = x if down is None else down(x, None, (stride, unpadded, one, 1), "none")
    h = layers[0](x, None, (one, unpadded, one, 1), act)
    h = layers[1](h, None, (stride, padding, dilation, groups), act)
    return layers[2](h, shortcut, (one, unpadded, one, 1), act)


def bottleneck_chain(x: Tensor, *arguments: Any) -> Tensor:
    """``grouped_bottleneck`` one after the other, see ``reference.bottleneck_chain``."""
    return run_chain(_OPS.grouped_bottleneck, x, *arguments)


def live_bottleneck_chain(x: Tensor, *arguments: Any) -> Tensor:
    """``live_bottleneck`` one after the other, see ``reference.live_bottleneck_chain``."""
    return run_live_chain(_OPS.live_bottleneck, x, *arguments)


def avg_pool_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``linear`` of the averages, see ``reference.avg_pool_linear``."""
    checks.avg_pool_linear_shape(x, weight, bias)
    return F.linear(x.mean((2, 3)), weight, bias)


def conv_max_pool(x: Tensor, packed: Tensor, shift: Tensor, *arguments: Any) -> Tensor:
    """``max_pool`` of ``conv_bn_act``; arguments, result and errors are theirs."""
    *conv, size, stride, padding = arguments
    return _OPS.max_pool(_OPS.conv_bn_act(x, packed, shift, None, *conv), size, stride, padding)


def live_conv_max_pool(
    x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor, *arguments: Any
) -> Tensor:
    """``max_pool`` of ``live_conv_bn_act``; arguments, result and errors are theirs."""
    *geometry, act, act_slope, size, stride, padding = arguments
    y = _OPS.live_conv_bn_act(x, weight, scale, shift, None, *geometry, "direct", act, act_slope)
    return _OPS.max_pool(y, size, stride, padding)


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "avg_pool_linear": avg_pool_linear,
    "bottleneck_chain": bottleneck_chain,
    "conv_max_pool": conv_max_pool,
    "live_bottleneck_chain": live_bottleneck_chain,
    "live_conv_max_pool": live_conv_max_pool,
}
