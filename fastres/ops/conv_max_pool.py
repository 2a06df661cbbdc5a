"""``conv_max_pool``: a network's stem, convolution and max-pooling in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..reference.gradients import Conv, act_grad, shift_grad
from ..schema import checks
from .arguments import (
    BYTES,
    IntOrPair,
    check_input,
    check_tensor,
    conv_geometry,
    pair,
    pool_window,
)
from .autocast import register_autocast
from .autograd import register_autograd
from .empty import empty_channels_last
from .max_pool import pooled_grad
from .onnx import refuse_onnx_export

_OPS = torch.ops.fastres


def conv_max_pool(
    x: Tensor,
    packed: Tensor,
    shift: Tensor,
    *,
    kernel_size: IntOrPair,
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
    """``max_pool`` of ``conv_bn_act``, a network's stem: rows are pooled while they are in a cache.

    Args:
        x: [N, C, H, W], float32, bfloat16, float16 or float64; any strides.
        packed: the weight [K, C/groups, R, S], of ``pack_conv_weight``; for a direct convolution,
            as one for Winograd's algorithm is convolved first and pooled after that.
        shift: [K], float32 (float64 for a float64 x).
        kernel_size: int or (R, S).
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
        [N, K, OH, OW] in the dtype of x, with dense channels_last strides: the bits that the two
        operators give one after the other.

    Raises:
        ValueError: shapes, devices or values that do not fit; names the argument.
        TypeError: a dtype other than these; names the argument.
    """
    op = "conv_max_pool"
    device, shift_dtypes = check_input(op, x)
    check_tensor(op, "packed", packed, BYTES, device)
    check_tensor(op, "shift", shift, shift_dtypes, device)
    kernel = (reference if x.dtype == torch.float64 else _OPS).conv_max_pool
    return kernel(
        x,
        packed,
        shift,
        pair("kernel_size", kernel_size),
        *conv_geometry(op, kernel_size, stride, padding, dilation),
        groups,
        act,
        act_slope,
        *pool_window(pool_size, pool_stride, pool_padding, "pool_"),
    )


@torch.library.register_fake("fastres::conv_max_pool")
def _conv_max_pool_fake(x: Tensor, packed: Tensor, shift: Tensor, *arguments: Any) -> Tensor:
    op = "conv_max_pool"
    refuse_onnx_export(op)
    kernel_size, stride, padding, dilation, groups, act, _, *pool = arguments
    convolved = checks.conv_bn_act_shape(
        x, packed, shift, None, kernel_size, stride, padding, dilation, groups, act,
        read_packed=False, op=op,
    )  # fmt: skip
    shape = checks.conv_max_pool_shape(op, convolved, *pool)
    return empty_channels_last(x, shape)


def _conv_max_pool_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, shift, *ctx.config = inputs
    ctx.save_for_backward(x, packed, shift)


def _conv_max_pool_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Convolves again: the forward did not store what it pooled."""
    x, packed, shift = ctx.saved_tensors
    *geometry, act, act_slope = ctx.config[:-3]
    conv = Conv(packed, shift, *geometry)
    wide = reference.compute_dtype(grad)
    out, value = conv.forward_for_grad(x.to(wide), None, act, act_slope)
    g = act_grad(pooled_grad(grad.to(wide), out, ctx.config[-3:]), value, act, act_slope)
    needs_x, _, needs_shift, *_ = ctx.needs_input_grad
    return (
        conv.input_grad(g, x.shape).to(grad.dtype) if needs_x else None,
        None,
        shift_grad(g) if needs_shift else None,
        *[None] * len(ctx.config),
    )


register_autograd("conv_max_pool", _conv_max_pool_backward, setup_context=_conv_max_pool_setup)
register_autocast("conv_max_pool", (0,))  # x
