"""Activations and their gradients, as reference.apply_act and _gradients.act_grad have them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(v, slope, ACT: tl.constexpr):
    """The activation called ``ACT`` of float32 values; comparisons are such that NaN stays NaN."""
    if ACT == "relu":
        v = tl.where(v < 0, 0.0, v)
    elif ACT == "relu6":
        v = tl.where(v < 0, 0.0, tl.where(v > 6, 6.0, v))
    elif ACT == "leaky_relu":
        v = tl.where(v > 0, v, v * slope)
    elif ACT == "silu":
        v = v / (1 + tl.exp(-v))
    else:
        tl.static_assert(ACT == "none", "unknown activation")
    return v


@triton.jit
def activate_grad(g, v, slope, ACT: tl.constexpr):
    """The gradient of the activation's input ``v``, from that of its output."""
    if ACT == "relu":
        g = tl.where(v <= 0, 0.0, g)
    elif ACT == "relu6":
        g = tl.where((v <= 0) | (v >= 6), 0.0, g)
    elif ACT == "leaky_relu":
        g = tl.where(v > 0, g, g * slope)
    elif ACT == "silu":
        sigmoid = 1 / (1 + tl.exp(-v))
        g = g * sigmoid * (1 + v * (1 - sigmoid))
    else:
        tl.static_assert(ACT == "none", "unknown activation")
    return g
