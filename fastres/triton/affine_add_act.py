"""affine_add_act and its gradients: one pass over the tensors, and sums in two stages."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from ..schema import training_checks
from .activation import activate, activate_grad
from .coverage import otherwise
from .moments import sum_parts
from .operands import empty_channels_last
from .tiles import affine, load_channels, narrow, sum_rows, widen

_ELEMENTS = 4096  # of a tile


def _tile(channels: int) -> tuple[int, int]:
    """Pixels and channels of a tile."""
    wide = min(128, triton.next_power_of_2(channels))
    return _ELEMENTS // wide, wide


def _rows(pixels: int, channels: int) -> int:
    """Pixels of one program of the backward: several tiles where there is work for everybody."""
    tall, wide = _tile(channels)
    programs = triton.cdiv(pixels, tall) * triton.cdiv(channels, wide)
    return tall * min(16, max(1, programs // 1024))


@otherwise(reference.affine_add_act)
def affine_add_act(
    y: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    res_mean: Tensor | None,
    res_scale: Tensor | None,
    res_bias: Tensor | None,
    act: str,
    act_slope: float,
) -> Tensor:
    """``act((y - mean) * scale + bias + shortcut)``, see ``reference.affine_add_act``."""
    training_checks.affine_add_act_check(
        "affine_add_act", y, mean, scale, bias, residual, res_mean, res_scale, res_bias, act
    )
    n, c, h, w = y.shape
    out = empty_channels_last(y, y.shape)
    if out.numel():
        tall, wide = _tile(c)
        affine_add_act_kernel[(triton.cdiv(n * h * w, tall) * triton.cdiv(c, wide),)](
            y, mean, scale, bias, residual, res_mean, res_scale, res_bias, out,
            h, w, n * h * w, act_slope, *y.stride(), *_strides(residual),
            C=c, ACT=act, TALL=tall, WIDE=wide,
        )  # fmt: skip
    return out


def _strides(tensor: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0) if tensor is None else tensor.stride()


@otherwise(reference.affine_add_act_backward)
def affine_add_act_backward(
    grad: Tensor,
    y: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    res_mean: Tensor | None,
    res_scale: Tensor | None,
    res_bias: Tensor | None,
    act: str,
    act_slope: float,
    unscaled: bool = False,
) -> tuple[Tensor, ...]:
    """Its gradients, see ``reference.affine_add_act_backward``."""
    op = "affine_add_act_backward"
    training_checks.affine_add_act_check(
        op, y, mean, scale, bias, residual, res_mean, res_scale, res_bias, act
    )
    training_checks.output_like_check(op, tuple(y.shape), y, grad=grad)
    n, c, h, w = y.shape
    pixels = n * h * w
    grad_y = empty_channels_last(y, y.shape)
    left_out = residual is None or unscaled
    grad_residual = None if left_out else empty_channels_last(y, y.shape)
    rows = _rows(pixels, c)
    # Of the gradient g before the activation: sums of g, g * (y - mean), g * (residual - res_mean).
    vectors = 2 if res_mean is None else 3
    parts = y.new_empty((vectors, triton.cdiv(pixels, rows), c), dtype=torch.float32)
    if pixels:
        tall, wide = _tile(c)
        affine_add_act_backward_kernel[(parts.shape[1] * triton.cdiv(c, wide),)](
            grad, y, mean, scale, bias, residual, res_mean, res_scale, res_bias,
            grad_y, grad_residual, parts,
            h, w, pixels, parts.shape[1], act_slope,
            *grad.stride(), *y.stride(), *_strides(residual),
            C=c, ACT=act, UNSCALED=unscaled, ROWS=rows, TALL=tall, WIDE=wide,
        )  # fmt: skip
    total, *centred = sum_parts(parts)
    none = y.new_empty(0, dtype=torch.float32)
    shortcut = [none, none.clone(), none.clone()]
    if res_scale is not None:
        shortcut = [-res_scale * total, centred[1], total.clone()]
    if grad_residual is None:
        grad_residual = y.new_empty(0)
    return (grad_y, -scale * total, centred[0], total, grad_residual, *shortcut)


@triton.jit
def _pixel_offsets(m, H, W, stride_n, stride_h, stride_w):
    """Offsets of pixels m, counted over all images, in a tensor of any strides."""
    image = (m // (H * W)).to(tl.int64) * stride_n
    return image + m // W % H * stride_h + m % W * stride_w


@triton.jit
def _load(tensor, offsets, channels, stride_c, inside):
    at = offsets[:, None] + (channels * stride_c)[None, :]
    return widen(tl.load(tensor + at, mask=inside, other=0))


@triton.jit
def affine_add_act_kernel(
    y, mean, scale, bias, residual, res_mean, res_scale, res_bias, out,
    H, W, pixels, slope,
    y_n, y_c, y_h, y_w, res_n, res_c, res_h, res_w,
    C: tl.constexpr, ACT: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """TALL pixels of WIDE channels."""
    columns: tl.constexpr = (C + WIDE - 1) // WIDE
    m = tl.program_id(0) // columns * TALL + tl.arange(0, TALL)
    c = tl.program_id(0) % columns * WIDE + tl.arange(0, WIDE)
    valid = c < C
    inside = (m < pixels)[:, None] & valid[None, :]
    value = _load(y, _pixel_offsets(m, H, W, y_n, y_h, y_w), c, y_c, inside)
    value = affine(value, mean, scale, bias, c, valid)
    if residual is not None:
        shortcut = _load(residual, _pixel_offsets(m, H, W, res_n, res_h, res_w), c, res_c, inside)
        value += affine(shortcut, res_mean, res_scale, res_bias, c, valid)
    value = narrow(activate(value, slope, ACT), out.dtype.element_ty)
    tl.store(out + m.to(tl.int64)[:, None] * C + c[None, :], value, mask=inside)


@triton.jit
def affine_add_act_backward_kernel(
    grad, y, mean, scale, bias, residual, res_mean, res_scale, res_bias,
    grad_y, grad_residual, parts,
    H, W, pixels, tiles, slope,
    g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w, res_n, res_c, res_h, res_w,
    C: tl.constexpr, ACT: tl.constexpr, UNSCALED: tl.constexpr, ROWS: tl.constexpr,
    TALL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """ROWS pixels of WIDE channels, TALL at a time."""
    columns: tl.constexpr = (C + WIDE - 1) // WIDE
    tile = tl.program_id(0) // columns
    c = tl.program_id(0) % columns * WIDE + tl.arange(0, WIDE)
    valid = c < C
    total = tl.zeros((WIDE,), tl.float32)
    centred = tl.zeros((WIDE,), tl.float32)
    res_centred = tl.zeros((WIDE,), tl.float32)
    for first in range(0, ROWS, TALL):
        m = tile * ROWS + first + tl.arange(0, TALL)
        inside = (m < pixels)[:, None] & valid[None, :]
        at = m.to(tl.int64)[:, None] * C + c[None, :]
        g = _load(grad, _pixel_offsets(m, H, W, g_n, g_h, g_w), c, g_c, inside)
        value = _load(y, _pixel_offsets(m, H, W, y_n, y_h, y_w), c, y_c, inside)
        before = affine(value, mean, scale, bias, c, valid)
        if residual is not None:
            shortcut = _load(
                residual, _pixel_offsets(m, H, W, res_n, res_h, res_w), c, res_c, inside
            )
            before += affine(shortcut, res_mean, res_scale, res_bias, c, valid)
        g = tl.where(inside, activate_grad(g, before, slope, ACT), 0.0)
        total += sum_rows(g)
        centred += sum_rows(g * (value - load_channels(mean, c, valid)[None, :]))
        result = g if UNSCALED else g * load_channels(scale, c, valid)[None, :]
        tl.store(grad_y + at, narrow(result, grad_y.dtype.element_ty), mask=inside)
        if res_mean is not None:
            res_deviation = shortcut - load_channels(res_mean, c, valid)[None, :]
            res_centred += sum_rows(g * res_deviation)
        if grad_residual is not None:
            result = g
            if res_mean is not None:
                result = g * load_channels(res_scale, c, valid)[None, :]
            tl.store(grad_residual + at, narrow(result, grad_y.dtype.element_ty), mask=inside)
    part = tile.to(tl.int64) * C + c
    vector = tl.cast(tiles, tl.int64) * C
    tl.store(parts + part, total, mask=valid)
    tl.store(parts + vector + part, centred, mask=valid)
    if res_mean is not None:
        tl.store(parts + 2 * vector + part, res_centred, mask=valid)
