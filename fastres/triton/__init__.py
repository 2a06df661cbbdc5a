"""The operators in Triton: the same stems and signatures as the schemas in csrc/ops.cpp.

    pack_conv_weight, conv_bn_act, live_conv_bn_act,       operators of inference
    grouped_bottleneck, live_bottleneck
    conv_stats, conv_stats_backward, affine_add_act        operators of training
    fprop, dgrad, wgrad                                    implicit GEMM, with prologue and epilogue
    moments                                                second stages of per-channel sums
    operands, tiles, activation, tuning                    what those share

Triton itself is imported with the first operator that runs, never with the package: it is optional,
and takes a while to import. Under ``TRITON_INTERPRET=1`` the kernels run in NumPy, on CPU tensors.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

# Operator -> the module in this package that has the function of its name.
OPERATORS = {
    "pack_conv_weight": "pack_conv_weight",
    "conv_bn_act": "conv_bn_act",
    "live_conv_bn_act": "live_conv_bn_act",
    "grouped_bottleneck": "grouped_bottleneck",
    "live_bottleneck": "live_bottleneck",
    "conv_stats": "conv_stats",
    "conv_stats_backward": "conv_stats_backward",
    "affine_add_act": "affine_add_act",
    "affine_add_act_backward": "affine_add_act",
}


def operator(name: str) -> Callable[..., Any]:
    """The operator called ``name``; its module is imported when it first runs."""

    @cache
    def function() -> Callable[..., Any]:
        return getattr(importlib.import_module(f"{__name__}.{OPERATORS[name]}"), name)

    def run(*arguments: Any) -> Any:
        return function()(*arguments)

    return run
