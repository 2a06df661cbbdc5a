"""live_bottleneck: scales the weights, which are little beside the block, and runs it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..composed import Layer, bottleneck
from ..schema import checks
from .convolve import once_for_all_alike
from .grouped_bottleneck import layer
from .live_conv_bn_act import scaled


def live_bottleneck(x: Tensor, *arguments: Any) -> Tensor:
    """``grouped_bottleneck`` of weights times scales, see ``reference.live_bottleneck``."""
    if x.dtype == torch.float64:
        return reference.live_bottleneck(x, *arguments)
    *arrays, stride, dilation, groups, algorithm, act = arguments
    options = (stride, dilation, groups, algorithm, act)
    once_for_all_alike(checks.live_bottleneck_shape, (x, *arrays), options)

    def scaled_layer(number: int) -> Layer:
        weight, scale, shift = arrays[3 * number : 3 * number + 3]
        return layer(scaled(weight, scale, x.dtype), shift)

    layers = scaled_layer(0), scaled_layer(1), scaled_layer(2)
    down = None if arrays[9] is None else scaled_layer(3)
    return bottleneck(layers, down, x, stride, dilation, groups, act)
