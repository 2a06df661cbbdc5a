"""Operators made of others, for devices that have no kernel of their own for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_OPS = torch.ops.fastres


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
