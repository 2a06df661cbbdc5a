"""``conv_bn_act``: a convolution with folded BatchNorm, shortcut and activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..reference.gradients import Conv, act_grad, needs_preactivation, shift_grad
from ..schema import checks
from .arguments import (
    BYTES,
    IntOrPair,
    check_input,
    check_tensor,
    conv_geometry,
    no_shift,
    pair,
)
from .autocast import register_autocast
from .autograd import register_autograd
from .empty import empty_channels_last
from .onnx import refuse_onnx_export

_OPS = torch.ops.fastres


def conv_bn_act(
    x: Tensor,
    packed: Tensor,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    kernel_size: IntOrPair,
    stride: IntOrPair = 1,
    padding: str | IntOrPair = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    act: str = "none",
    act_slope: float = 0.01,
) -> Tensor:
    """Convolution, folded BatchNorm, shortcut and activation: ``act(conv(x) + shift + residual)``.

    Args:
        x: [N, C, H, W], float32, bfloat16, float16 or float64; any strides.
        packed: the weight [K, C/groups, R, S], of ``pack_conv_weight``.
        shift: [K], float32 (float64 for a float64 x), or None for 0. None reads ``packed`` to learn
            K, so pass a tensor in code to be compiled.
        residual: [N, K, OH, OW] in the dtype of x, any strides, or None.
        kernel_size: int or (R, S).
        stride: int or (vertical, horizontal).
        padding: int, (vertical, horizontal), (top, bottom, left, right), "same" or "valid".
        dilation: int or (vertical, horizontal).
        groups: divides C and K.
        act: "none", "relu", "relu6", "silu" or "leaky_relu".
        act_slope: leaky_relu's negative slope.

    Returns:
        [N, K, OH, OW] in the dtype of x, with dense channels_last strides. Arithmetic is float32
        (float64 for float64), rounded once.

    Raises:
        ValueError: shapes, devices or values that do not fit; names the argument.
        TypeError: a dtype other than these; names the argument.
    """
    op = "conv_bn_act"
    device, shift_dtypes = check_input(op, x)
    check_tensor(op, "packed", packed, BYTES, device)
    if shift is None:
        shift = no_shift(op, packed, shift_dtypes[0])
    else:
        check_tensor(op, "shift", shift, shift_dtypes, device)
    if residual is not None:
        autocast = torch.is_autocast_enabled(device.type)
        dtypes = checks.FLOAT_DTYPES if autocast else (x.dtype,)
        check_tensor(op, "residual", residual, dtypes, device)
    kernel = (reference if x.dtype == torch.float64 else _OPS).conv_bn_act
    return kernel(
        x,
        packed,
        shift,
        residual,
        pair("kernel_size", kernel_size),
        *conv_geometry(op, kernel_size, stride, padding, dilation),
        groups,
        act,
        act_slope,
    )


@torch.library.register_fake("fastres::conv_bn_act")
def _conv_bn_act_fake(
    x: Tensor,
    packed: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    act: str,
    act_slope: float,
) -> Tensor:
    refuse_onnx_export("conv_bn_act")
    shape = checks.conv_bn_act_shape(
        x,
        packed,
        shift,
        residual,
        kernel_size,
        stride,
        padding,
        dilation,
        groups,
        act,
        read_packed=False,
    )
    return empty_channels_last(x, shape)


def _conv_bn_act_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, shift, residual, *ctx.config = inputs
    ctx.size = x.shape
    if needs_preactivation(*ctx.config[-2:]):
        ctx.save_for_backward(packed, shift, x, residual)
    else:
        ctx.save_for_backward(packed, shift, output, None)


def _conv_bn_act_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    packed, shift, value, residual = ctx.saved_tensors
    *geometry, act, act_slope = ctx.config
    conv = Conv(packed, shift, *geometry)
    wide = reference.compute_dtype(grad)
    value = value.to(wide)
    if needs_preactivation(act, act_slope):
        shortcut = None if residual is None else residual.to(wide)
        _, value = conv.forward_for_grad(value, shortcut, act, act_slope)
    g = act_grad(grad.to(wide), value, act, act_slope)
    needs_x, _, needs_shift, needs_residual, *_ = ctx.needs_input_grad
    return (
        conv.input_grad(g, ctx.size).to(grad.dtype) if needs_x else None,
        None,
        shift_grad(g) if needs_shift else None,
        g.to(grad.dtype) if needs_residual else None,
        *[None] * len(ctx.config),
    )


register_autograd("conv_bn_act", _conv_bn_act_backward, setup_context=_conv_bn_act_setup)
register_autocast("conv_bn_act", (0, 3))  # x, residual
