"""The operators of inference with cuDNN's convolutions, which apply the epilogue themselves.

    pack_conv_weight, conv_bn_act, live_conv_bn_act,       operators
    grouped_bottleneck, live_bottleneck
    convolve                                               what they share

docs/performance.md has why a GPU runs inference on these and not on csrc/cuda.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .conv_bn_act import conv_bn_act
from .grouped_bottleneck import grouped_bottleneck
from .live_bottleneck import live_bottleneck
from .live_conv_bn_act import live_conv_bn_act
from .pack_conv_weight import pack_conv_weight

OPERATORS: dict[str, Callable[..., Any]] = {
    "pack_conv_weight": pack_conv_weight,
    "conv_bn_act": conv_bn_act,
    "live_conv_bn_act": live_conv_bn_act,
    "grouped_bottleneck": grouped_bottleneck,
    "live_bottleneck": live_bottleneck,
}
