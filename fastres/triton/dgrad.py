"""The data gradient as an implicit GEMM over input pixels, its epilogue the prologue's gradient.

With a stride, input pixels of one residue modulo the stride (a *phase*) all meet the same taps; a
tile is of one phase and goes through no others.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate_grad
from .fprop import Affine, Geometry
from .operands import Operand, empty_channels_last
from .output_gradient import OutputGradient, load_output_gradient
from .tiles import (
    affine,
    any_not_finite,
    dot,
    load_channels,
    load_weight,
    narrow,
    sum_rows,
    taps_and_channels,
    tile_of_program,
    widen,
)
from .tuning import (
    BAND,
    DGRAD_CONFIGS,
    dot_precision,
    keep_fitting_dgrad,
    rows_per_tile,
    size_class,
)


def dgrad(
    gradient: OutputGradient,
    x: Tensor,
    operand: Operand,
    geometry: Geometry,
    prologue: Affine,
    in_act: str,
    act_slope: float,
    grad_in: Tensor | None,
    in_residual: Tensor | None,
    *,
    need_x: bool,
    need_affine: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``fprop``'s input and prologue.

    Args:
        gradient: of the output, [N, K, OH, OW].
        x: fprop's input, [N, C, H, W].
        operand: of operands.transposed_operand, in the dtype of x.
        geometry: of fprop.
        prologue: of fprop.
        in_act: of fprop.
        act_slope: of in_act.
        grad_in: what else flows into the gradient of the activated input, like x, or None.
        in_residual: what was added before the activation, like x, or None.
        need_x: whether x's gradient is wanted.
        need_affine: whether the prologue's are; needs one.

    Returns:
        x's gradient, dense channels_last (or in_residual's, if there is one); and, of every tile,
        with g the gradient of the prologue's affine, the sums over pixels of g and of
        g * (x - mean): [2, tiles, C] float32.
    """
    n, c, h, w = x.shape
    _, k, oh, ow = gradient.grad_y.shape
    (stride_h, stride_w), tiles = geometry.stride, operand.tiles
    # Pixels of a phase, those beyond the image's edge included.
    pixels = n * triton.cdiv(h, stride_h) * triton.cdiv(w, stride_w)
    rows = rows_per_tile(x, pixels * stride_h * stride_w, tiles)
    tiles_m = triton.cdiv(pixels, rows) * stride_h * stride_w
    grad_x = empty_channels_last(x, x.shape) if need_x else None
    parts = x.new_empty((2, tiles_m, c), dtype=torch.float32) if need_affine else None
    if grad_in is not None:
        grad_in = grad_in.contiguous(memory_format=torch.channels_last)
    if in_residual is not None:
        in_residual = in_residual.contiguous(memory_format=torch.channels_last)
    if pixels == 0:
        return grad_x, parts

    def grid(meta: dict[str, int]) -> tuple[int]:
        return (tiles_m * tiles.number * triton.cdiv(tiles.out_width, meta["BLOCK_N"]),)

    dgrad_kernel[grid](
        *gradient, operand.values, x, *prologue, grad_in, in_residual, grad_x, parts,
        h, w, oh, ow, n * oh * ow, pixels, tiles.number, act_slope,
        *gradient.strides(), *x.stride(),
        C=c, K=k, IN_WIDTH=tiles.in_width, OUT_WIDTH=tiles.out_width,
        GROUP_IN=tiles.group_in, DIAGONAL=tiles.diagonal,
        R=operand.kernel_size[0], S=operand.kernel_size[1],
        STRIDE_H=stride_h, STRIDE_W=stride_w,
        PAD_H=geometry.padding[0], PAD_W=geometry.padding[2],
        DIL_H=geometry.dilation[0], DIL_W=geometry.dilation[1],
        STEP_H=_step(stride_h, geometry.dilation[0]), STEP_W=_step(stride_w, geometry.dilation[1]),
        IN_ACT=in_act, PRECISION=dot_precision(x), SIZE_CLASS=size_class(pixels),
        BLOCK_M=rows, BAND=BAND,
    )  # fmt: skip
    return grad_x, parts


def _step(stride: int, dilation: int) -> int:
    """From one tap that a phase meets to the next."""
    return stride // math.gcd(stride, dilation)


@triton.jit
def _phase_taps(
    phase, PAD: tl.constexpr, DIL: tl.constexpr, STRIDE: tl.constexpr, STEP: tl.constexpr,
    TAPS: tl.constexpr,
):  # fmt: skip
    """First tap that the pixels of a phase meet, and how many, along one axis."""
    first = TAPS
    for back in tl.static_range(STEP):
        tap = STEP - 1 - back
        first = tl.where((phase + PAD - tap * DIL) % STRIDE == 0, tap, first)
    return first, tl.maximum(TAPS - first + STEP - 1, 0) // STEP


@triton.jit
def _accumulate(
    grad_y, y, mean, grad_scale, grad_mean, grad_m2, weight, image, ih, iw, row_valid, tile, n,
    only_group,
    first_r, taps_h, first_s, taps_w, OH, OW, out_pixels,
    g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w,
    K: tl.constexpr, IN_WIDTH: tl.constexpr, OUT_WIDTH: tl.constexpr, GROUP_IN: tl.constexpr,
    DIAGONAL: tl.constexpr, ONE_GROUP: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, STEP_H: tl.constexpr, STEP_W: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The GEMM of one tile; with ONE_GROUP, as if the gradient's other groups were 0."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    reduction = taps_h * taps_w * IN_WIDTH
    for k0 in range(0, reduction, BLOCK_K):
        tap, weight_tap, ki = taps_and_channels(k0, IN_WIDTH, BLOCK_K)
        k = tile * IN_WIDTH + ki
        valid = (k0 + tl.arange(0, BLOCK_K) < reduction) & (k < K)
        if ONE_GROUP:
            valid &= ki // GROUP_IN == only_group
        r, s = first_r + tap // taps_w * STEP_H, first_s + tap % taps_w * STEP_W
        oh = (ih[:, None] + PAD_H - r * DIL_H) // STRIDE_H
        ow = (iw[:, None] + PAD_W - s * DIL_W) // STRIDE_W
        inside = row_valid[:, None] & valid[None, :]
        inside &= (oh >= 0) & (oh < OH) & (ow >= 0) & (ow < OW)
        a = load_output_gradient(
            grad_y, y, mean, grad_scale, grad_mean, grad_m2, image, oh, ow, k, inside, valid,
            out_pixels, g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w,
        )  # fmt: skip
        r = first_r + weight_tap // taps_w * STEP_H
        s = first_s + weight_tap % taps_w * STEP_W
        b = load_weight(weight, tile, r * S + s, ki, n, valid, R * S, GROUP_IN, OUT_WIDTH, DIAGONAL)
        acc = dot(a, b, acc, PRECISION)
    return acc


@triton.autotune(
    DGRAD_CONFIGS,
    key=[
        "C", "K", "IN_WIDTH", "OUT_WIDTH", "R", "S", "STRIDE_H", "STRIDE_W", "DIL_H", "DIL_W",
        "IN_ACT", "PRECISION", "SIZE_CLASS", "BLOCK_M",
    ],
    prune_configs_by={"early_config_prune": keep_fitting_dgrad},
    cache_results=True,
)  # fmt: skip
@triton.jit
def dgrad_kernel(
    grad_y, y, mean, grad_scale, grad_mean, grad_m2, weight, x, in_mean, in_scale, in_bias,
    grad_in, in_residual, grad_x, parts,
    H, W, OH, OW, out_pixels, pixels, channel_tiles, slope,
    g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w, x_n, x_c, x_h, x_w,
    C: tl.constexpr, K: tl.constexpr, IN_WIDTH: tl.constexpr, OUT_WIDTH: tl.constexpr,
    GROUP_IN: tl.constexpr, DIAGONAL: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, STEP_H: tl.constexpr, STEP_W: tl.constexpr,
    IN_ACT: tl.constexpr, PRECISION: tl.constexpr, SIZE_CLASS: tl.constexpr,
    BLOCK_M: tl.constexpr, BAND: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of BLOCK_M input pixels of a phase by BLOCK_N channels."""
    wide: tl.constexpr = (OUT_WIDTH + BLOCK_N - 1) // BLOCK_N
    tiles_phase = (pixels + BLOCK_M - 1) // BLOCK_M
    tiles_m = tiles_phase * STRIDE_H * STRIDE_W
    tile_m, column = tile_of_program(tiles_m, channel_tiles * wide, BAND)
    phase, tile = tile_m // tiles_phase, column // wide
    phase_h, phase_w = phase // STRIDE_W, phase % STRIDE_W
    m = tile_m % tiles_phase * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column % wide * BLOCK_N + tl.arange(0, BLOCK_N)
    phase_rows, phase_columns = (H + STRIDE_H - 1) // STRIDE_H, (W + STRIDE_W - 1) // STRIDE_W
    image = (m // (phase_rows * phase_columns)).to(tl.int64)
    ih = m // phase_columns % phase_rows * STRIDE_H + phase_h
    iw = m % phase_columns * STRIDE_W + phase_w
    row_valid = (m < pixels) & (ih < H) & (iw < W)
    first_r, taps_h = _phase_taps(phase_h, PAD_H, DIL_H, STRIDE_H, STEP_H, R)
    first_s, taps_w = _phase_taps(phase_w, PAD_W, DIL_W, STRIDE_W, STEP_W, S)
    acc = _accumulate(
        grad_y, y, mean, grad_scale, grad_mean, grad_m2, weight, image, ih, iw, row_valid, tile, n,
        0, first_r, taps_h, first_s, taps_w, OH, OW, out_pixels,
        g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w,
        K, IN_WIDTH, OUT_WIDTH, GROUP_IN, DIAGONAL, False, R, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W,
        DIL_H, DIL_W, STEP_H, STEP_W, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    if DIAGONAL:
        # 0 times infinity: what is not finite in one group must not reach its neighbours.
        if any_not_finite(acc):
            for group in range(IN_WIDTH // GROUP_IN):
                alone = _accumulate(
                    grad_y, y, mean, grad_scale, grad_mean, grad_m2, weight, image, ih, iw,
                    row_valid, tile, n, group, first_r, taps_h, first_s, taps_w, OH, OW, out_pixels,
                    g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w,
                    K, IN_WIDTH, OUT_WIDTH, GROUP_IN, DIAGONAL, True, R, S, STRIDE_H, STRIDE_W,
                    PAD_H, PAD_W, DIL_H, DIL_W, STEP_H, STEP_W, PRECISION, BLOCK_M, BLOCK_N,
                    BLOCK_K,
                )  # fmt: skip
                acc = tl.where((n // GROUP_IN == group)[None, :], alone, acc)

    c = tile * OUT_WIDTH + n
    valid = (n < OUT_WIDTH) & (c < C)
    inside = row_valid[:, None] & valid[None, :]
    dense = ((image * H + ih) * W + iw)[:, None] * C + c[None, :]
    if grad_in is not None:
        acc += widen(tl.load(grad_in + dense, mask=inside, other=0))
    if in_mean is not None or IN_ACT != "none":
        at = (image * x_n + ih * x_h + iw * x_w)[:, None] + (c * x_c)[None, :]
        value = widen(tl.load(x + at, mask=inside, other=0))
        before = affine(value, in_mean, in_scale, in_bias, c, valid)
        if in_residual is not None:
            before += widen(tl.load(in_residual + dense, mask=inside, other=0))
        acc = tl.where(inside, activate_grad(acc, before, slope, IN_ACT), 0.0)
        if parts is not None:
            part = tile_m.to(tl.int64) * C + c
            deviation = value - load_channels(in_mean, c, valid)[None, :]
            tl.store(parts + part, sum_rows(acc), mask=valid)
            tl.store(
                parts + tl.cast(tiles_m, tl.int64) * C + part, sum_rows(acc * deviation), mask=valid
            )
        if in_mean is not None and in_residual is None:
            acc *= load_channels(in_scale, c, valid)[None, :]
    if grad_x is not None:
        tl.store(grad_x + dense, narrow(acc, grad_x.dtype.element_ty), mask=inside)
