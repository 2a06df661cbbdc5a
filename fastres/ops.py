"""The operators: public functions, fake kernels, autograd and autocast, side by side for each.

Those of inference are here; those of training (``conv_stats``, ``affine_add_act``) come from
training_ops.py.

Kernels live in csrc/ (or in reference.py where there is no native library). The functions here
normalise their arguments, check what a kernel cannot name (dtypes, devices), and send float64,
which has no kernel, to the reference.

Gradients go to x, shift and residual; a packed weight is a constant. They are computed in plain
PyTorch, in float32 for reduced dtypes, and can be differentiated again. Forward mode (jvp) raises
NotImplementedError, but in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _checks, _library, reference
from ._arguments import (
    BYTES,
    FLOAT32,
    FLOAT64,
    IntOrPair,
    check_input,
    check_tensor,
    conv_geometry,
    no_shift,
    pair,
    pool_window,
    resolve_padding,
)
from ._autocast import register_autocast
from ._autograd import register_autograd
from ._gradients import Conv, act_grad, bottleneck_convs, needs_preactivation, shift_grad
from ._onnx import refuse_onnx_export
from ._packed import PackedHeader
from .chain_ops import bottleneck_chain, join_packed
from .head_ops import avg_pool_linear
from .live_chain_ops import live_bottleneck_chain
from .live_ops import live_bottleneck, live_conv_bn_act, live_conv_max_pool
from .training_ops import affine_add_act, conv_stats

__all__ = [
    "affine_add_act",
    "avg_pool_linear",
    "bottleneck_chain",
    "content_hash",
    "conv_bn_act",
    "conv_max_pool",
    "conv_stats",
    "grouped_bottleneck",
    "join_packed",
    "live_bottleneck",
    "live_bottleneck_chain",
    "live_conv_bn_act",
    "live_conv_max_pool",
    "max_pool",
    "pack_conv_weight",
    "resolve_padding",
]

_OPS = torch.ops.fastres


# ---- pack_conv_weight ----------------------------------------------------------------------------


def pack_conv_weight(
    weight: Tensor, scale: Tensor | None = None, groups: int = 1, algorithm: str = "direct"
) -> Tensor:
    """Packs a convolution's weight, times a scale, in the layout that the kernels read.

    Args:
        weight: [K, C/groups, R, S], float32, bfloat16, float16 or float64.
        scale: [K], float32 (float64 for a float64 weight): BatchNorm's gamma / sqrt(var + eps).
        groups: the convolution's groups; divides K.
        algorithm: "direct", or "winograd" for a dense 3x3 that will be used with stride and
            dilation 1: Winograd's F(2x2, 3x3) (Lavin and Gray, arXiv:1509.09308), 2.25 times fewer
            multiplications; or "bfloat16", for bfloat16 inputs and multiples of 32 channels in each
            group: the weight, times the scale, is rounded to bfloat16, in half the bytes. AMX
            multiplies it as it is packed, other kernels widen it at each call.

    Returns:
        1-D uint8 tensor, a constant for ``conv_bn_act`` and ``grouped_bottleneck``. But for
        "bfloat16" it holds float32 whatever the weight's dtype (float64 for float64); the same
        bytes serve every instruction set. Of cuDNN or the CUDA kernels it also holds bfloat16 and
        float16 copies, and serves those two alone.

    Raises:
        ValueError: shapes that do not fit, or a weight or scale that would need a gradient.
        TypeError: a dtype other than these.
    """
    check_tensor("pack_conv_weight", "weight", weight, _checks.FLOAT_DTYPES, None)
    double = weight.dtype == torch.float64
    if scale is not None:
        dtypes = FLOAT64 if double else FLOAT32
        check_tensor("pack_conv_weight", "scale", scale, dtypes, weight.device)
    if torch.is_grad_enabled():
        for name, tensor in (("weight", weight), ("scale", scale)):
            if tensor is not None and tensor.requires_grad:
                raise ValueError(
                    f"pack_conv_weight: {name} requires grad, but packed weights are constants; "
                    f"pass {name}.detach()"
                )
    if double:
        return reference.pack_conv_weight(weight, scale, groups, algorithm)
    return _OPS.pack_conv_weight(weight, scale, groups, algorithm)


@torch.library.register_fake("fastres::pack_conv_weight")
def _pack_conv_weight_fake(
    weight: Tensor, scale: Tensor | None, groups: int, algorithm: str = "direct"
) -> Tensor:
    _checks.pack_conv_weight_check(weight, scale, groups, algorithm)
    k, cg, r, s = weight.shape
    layout = _library.packed_layout(weight.device.type, (k, cg, r, s), groups, algorithm)
    header = PackedHeader(layout, reference.compute_dtype(weight), k, cg, r, s, groups)
    return weight.new_empty(header.total_bytes(), dtype=torch.uint8)


# ---- what the two inference operators share ------------------------------------------------------


def _empty_channels_last(x: Tensor, shape: Sequence[int]) -> Tensor:
    n, c, h, w = shape
    return x.new_empty_strided((n, c, h, w), (h * w * c, 1, w * c, c))


# ---- conv_bn_act ---------------------------------------------------------------------------------


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
        dtypes = _checks.FLOAT_DTYPES if autocast else (x.dtype,)
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
    shape = _checks.conv_bn_act_shape(
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
    return _empty_channels_last(x, shape)


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


# ---- max_pool ------------------------------------------------------------------------------------


def max_pool(
    x: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
) -> Tensor:
    """``F.max_pool2d`` with channels_last output.

    Args:
        x: [N, C, H, W], float32, bfloat16, float16 or float64; any strides.
        kernel_size: int or (R, S).
        stride: int or (vertical, horizontal); None for kernel_size.
        padding: int or (vertical, horizontal), at most half of kernel_size.

    Returns:
        [N, C, OH, OW] in the dtype of x, with dense channels_last strides; NaN where a window has
        one.

    Raises:
        ValueError: shapes or values that do not fit; names the argument.
        TypeError: a dtype other than these; names the argument.
    """
    check_input("max_pool", x)
    kernel = (reference if x.dtype == torch.float64 else _OPS).max_pool
    window = pair("kernel_size", kernel_size)
    step = window if stride is None else pair("stride", stride)
    return kernel(x, window, step, pair("padding", padding))


@torch.library.register_fake("fastres::max_pool")
def _max_pool_fake(x: Tensor, *args: Any) -> Tensor:
    refuse_onnx_export("max_pool")
    return _empty_channels_last(x, _checks.max_pool_shape(x, *args))


def _max_pool_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *ctx.window = inputs
    ctx.save_for_backward(x)


def _pooled_grad(grad: Tensor, x: Tensor, window: Sequence[Any]) -> Tensor:
    """Looks for the largest values again: the forward did not store where they were."""
    window = (*window, [1, 1], False)
    _, indices = torch.ops.aten.max_pool2d_with_indices(x, *window)
    return torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *window, indices)


def _max_pool_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    return _pooled_grad(grad, x, ctx.window), None, None, None


register_autograd("max_pool", _max_pool_backward, setup_context=_max_pool_setup)


# ---- conv_max_pool -------------------------------------------------------------------------------


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
    convolved = _checks.conv_bn_act_shape(
        x, packed, shift, None, kernel_size, stride, padding, dilation, groups, act,
        read_packed=False, op=op,
    )  # fmt: skip
    shape = _checks.conv_max_pool_shape(op, convolved, *pool)
    return _empty_channels_last(x, shape)


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
    g = act_grad(_pooled_grad(grad.to(wide), out, ctx.config[-3:]), value, act, act_slope)
    needs_x, _, needs_shift, *_ = ctx.needs_input_grad
    return (
        conv.input_grad(g, x.shape).to(grad.dtype) if needs_x else None,
        None,
        shift_grad(g) if needs_shift else None,
        *[None] * len(ctx.config),
    )


register_autograd("conv_max_pool", _conv_max_pool_backward, setup_context=_conv_max_pool_setup)
register_autocast("conv_max_pool", (0,))  # x


# ---- grouped_bottleneck --------------------------------------------------------------------------


def grouped_bottleneck(
    x: Tensor,
    packed1: Tensor,
    shift1: Tensor,
    packed2: Tensor,
    shift2: Tensor,
    packed3: Tensor,
    shift3: Tensor,
    packed_down: Tensor | None = None,
    shift_down: Tensor | None = None,
    *,
    stride: IntOrPair = 1,
    dilation: IntOrPair = 1,
    groups: int = 1,
    act: str = "relu",
) -> Tensor:
    """A whole bottleneck, ``act(conv3(act(conv2(act(conv1(x))))) + shortcut)``, depth-first.

    conv1 and conv3 are 1x1, conv2 is 3x3 with padding=dilation, and the shortcut is x or a 1x1
    convolution of x (He et al., arXiv:1512.03385; with groups, Xie et al., arXiv:1611.05431). Both
    strides are where torchvision has them: in conv2 and in the shortcut.

    Args:
        x: [N, C, H, W], float32, bfloat16, float16 or float64; any strides.
        packed1: conv1's weight [K1, C, 1, 1], of ``pack_conv_weight``.
        shift1: [K1], float32 (float64 for a float64 x).
        packed2: conv2's weight [K2, K1/groups, 3, 3].
        shift2: [K2].
        packed3: conv3's weight [K3, K2, 1, 1].
        shift3: [K3].
        packed_down: the shortcut's weight [K3, C, 1, 1], or None for x itself.
        shift_down: [K3], with ``packed_down``.
        stride: int or (vertical, horizontal).
        dilation: int or (vertical, horizontal).
        groups: of conv2.
        act: "none", "relu", "relu6", "silu" or "leaky_relu" (slope 0.01).

    Returns:
        [N, K3, OH, OW] in the dtype of x, with dense channels_last strides. Arithmetic is float32
        (float64 for float64), rounded once.

    Raises:
        ValueError: shapes, devices or values that do not fit; names the argument.
        TypeError: a dtype other than these; names the argument.
    """
    op = "grouped_bottleneck"
    device, shift_dtypes = check_input(op, x)
    for name, packed, shift in (
        ("1", packed1, shift1),
        ("2", packed2, shift2),
        ("3", packed3, shift3),
        ("_down", packed_down, shift_down),
    ):
        if packed is not None:
            check_tensor(op, f"packed{name}", packed, BYTES, device)
        if shift is not None:
            check_tensor(op, f"shift{name}", shift, shift_dtypes, device)
    kernel = (reference if x.dtype == torch.float64 else _OPS).grouped_bottleneck
    return kernel(
        x,
        packed1,
        shift1,
        packed2,
        shift2,
        packed3,
        shift3,
        packed_down,
        shift_down,
        pair("stride", stride),
        pair("dilation", dilation),
        groups,
        act,
    )


@torch.library.register_fake("fastres::grouped_bottleneck")
def _grouped_bottleneck_fake(x: Tensor, *args: Any) -> Tensor:
    refuse_onnx_export("grouped_bottleneck")
    return _empty_channels_last(x, _checks.grouped_bottleneck_shape(x, *args, read_packed=False))


def _grouped_bottleneck_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.config = inputs[9:]
    ctx.save_for_backward(*inputs[:9], output)


def _grouped_bottleneck_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Recomputes the inner activations, which the forward did not store."""
    x, *constants, out = ctx.saved_tensors
    act, slope, dtype = ctx.config[-1], 0.01, x.dtype
    conv1, conv2, conv3, down = bottleneck_convs(constants, ctx.config)
    wide = reference.compute_dtype(x)
    x, value3 = x.to(wide), out.to(wide)
    h1, value1 = conv1.forward_for_grad(x, None, act, slope)
    h2, value2 = conv2.forward_for_grad(h1, None, act, slope)
    if needs_preactivation(act, slope):
        shortcut = x if down is None else down.forward(x, None, "none", slope)
        _, value3 = conv3.forward_for_grad(h2, shortcut, act, slope)

    g3 = act_grad(grad.to(wide), value3, act, slope)
    g2 = act_grad(conv3.input_grad(g3, h2.shape), value2, act, slope)
    g1 = act_grad(conv2.input_grad(g2, h1.shape), value1, act, slope)
    grads: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    if ctx.needs_input_grad[0]:
        direct = g3 if down is None else down.input_grad(g3, x.shape)
        grads[0] = (conv1.input_grad(g1, x.shape) + direct).to(dtype)
    for position, g in ((2, g1), (4, g2), (6, g3), (8, g3)):  # shift1, 2, 3 and shift_down
        if ctx.needs_input_grad[position]:
            grads[position] = shift_grad(g)
    return tuple(grads)


register_autograd(
    "grouped_bottleneck",
    _grouped_bottleneck_backward,
    setup_context=_grouped_bottleneck_setup,
)
register_autocast("grouped_bottleneck", (0,))  # x


# ---- content_hash --------------------------------------------------------------------------------


def content_hash(tensors: Sequence[Tensor]) -> list[int]:
    """One hash per tensor, of its elements: tells that a parameter changed, however that was done.

    Writing through ``parameter.data`` bumps no version counter; this sees it.

    Args:
        tensors: dense tensors of any dtype, shape, strides and device.

    Returns:
        A 64-bit int for each, to be compared within one process and backend. Equal for equal
        elements of one dtype, shape and strides; different where any of these differs, but for a
        chance of about 2**-64.

    Raises:
        TypeError: something is not a tensor.
    """
    tensors = list(tensors)
    for index, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"content_hash: tensors[{index}] must be a tensor, got {type(tensor).__name__}"
            )
    if any(tensor.device.type != "cpu" for tensor in tensors) or not tensors:
        return reference.content_hash(tensors)
    return _OPS.content_hash(tensors)


@torch.library.register_fake("fastres::content_hash")
def _content_hash_fake(tensors: Sequence[Tensor]) -> list[int]:
    raise RuntimeError("content_hash: reads its tensors' values, so it cannot be traced")
