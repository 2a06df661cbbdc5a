"""Convolution as an implicit GEMM over pixels, with prologue, epilogue and statistics.

[pixels, taps * channels] of the input, gathered, times [taps * channels, output channels] of the
weight. See operands.py for groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate
from .operands import Operand, empty_channels_last
from .tiles import (
    any_not_finite,
    dot,
    load_activated,
    load_weight,
    narrow,
    sum_rows,
    taps_and_channels,
    tile_of_program,
    widen,
)
from .tuning import (
    BAND,
    FPROP_CONFIGS,
    dot_precision,
    keep_fitting_fprop,
    rows_per_tile,
    size_class,
)


class Geometry(NamedTuple):
    """How a kernel moves over an image; padding is (top, bottom, left, right)."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]


class Affine(NamedTuple):
    """Three vectors of one value per channel: ``(x - mean) * scale + bias``; or none of them."""

    mean: Tensor | None = None
    scale: Tensor | None = None
    bias: Tensor | None = None


NO_AFFINE = Affine()


class TileStatistics(NamedTuple):
    """Mean and sum of squared deviations of every tile of ``rows`` pixels, [tiles, channels]."""

    mean: Tensor
    m2: Tensor
    rows: int


NO_STATISTICS = (None, None)


def empty_statistics(x: Tensor, operand: Operand, out_size: Sequence[int]) -> TileStatistics:
    """Room for the statistics of ``fprop`` of x."""
    n, k, oh, ow = out_size
    rows = rows_per_tile(x, n * oh * ow, operand.tiles)
    means, m2s = (
        x.new_empty((triton.cdiv(n * oh * ow, rows), k), dtype=torch.float32) for _ in range(2)
    )
    return TileStatistics(means, m2s, rows)


def fprop(
    x: Tensor,
    operand: Operand,
    geometry: Geometry,
    out_size: Sequence[int],
    *,
    prologue: Affine = NO_AFFINE,
    in_act: str = "none",
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    act: str = "none",
    act_slope: float = 0.0,
    statistics: TileStatistics | None = None,
) -> Tensor:
    """``act(conv(in_act(prologue(x))) + shift + residual)``.

    Args:
        x: [N, C, H, W], float32, bfloat16 or float16, any strides.
        operand: of operands.weight_operand, in the dtype of x.
        geometry: stride, padding and dilation.
        out_size: [N, K, OH, OW].
        prologue: of x's channels; what is padded is its activation.
        in_act: the prologue's activation.
        shift: [K] float32.
        residual: of the output's shape, dtype of x, any strides.
        act: the epilogue's activation.
        act_slope: leaky_relu's negative slope, of whichever activation it is.
        statistics: of empty_statistics, to be filled with those of the output before it is rounded.

    Returns:
        [N, K, OH, OW] in the dtype of x with dense channels_last strides.
    """
    n, k, oh, ow = out_size
    y = empty_channels_last(x, out_size)
    pixels, tiles = n * oh * ow, operand.tiles
    if pixels == 0:
        return y
    rows = rows_per_tile(x, pixels, tiles)
    none = (0, 0, 0, 0)

    def grid(meta: dict[str, int]) -> tuple[int]:
        wide = triton.cdiv(tiles.out_width, meta["BLOCK_N"])
        return (triton.cdiv(pixels, rows) * tiles.number * wide,)

    fprop_kernel[grid](
        x, operand.values, y, shift, residual, *prologue,
        *(statistics or NO_STATISTICS)[:2],
        *x.shape[2:], oh, ow, pixels, tiles.number, act_slope,
        *x.stride(), *(none if residual is None else residual.stride()),
        C=operand.in_channels, K=k, IN_WIDTH=tiles.in_width, OUT_WIDTH=tiles.out_width,
        GROUP_IN=tiles.group_in, DIAGONAL=tiles.diagonal,
        R=operand.kernel_size[0], S=operand.kernel_size[1],
        STRIDE_H=geometry.stride[0], STRIDE_W=geometry.stride[1],
        PAD_H=geometry.padding[0], PAD_W=geometry.padding[2],
        DIL_H=geometry.dilation[0], DIL_W=geometry.dilation[1],
        PADDED=any(geometry.padding), IN_ACT=in_act, ACT=act, PRECISION=dot_precision(x),
        SIZE_CLASS=size_class(pixels), BLOCK_M=rows, BAND=BAND,
    )  # fmt: skip
    return y


@triton.jit
def _accumulate(
    x, weight, mean, scale, bias, rows, ih0, iw0, row_valid, tile, n, only_group,
    H, W, slope, x_c, x_h, x_w,
    C: tl.constexpr, IN_WIDTH: tl.constexpr, OUT_WIDTH: tl.constexpr, GROUP_IN: tl.constexpr,
    DIAGONAL: tl.constexpr, ONE_GROUP: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, PADDED: tl.constexpr, IN_ACT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The GEMM of one tile; with ONE_GROUP, as if the input's other groups were 0."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    reduction: tl.constexpr = R * S * IN_WIDTH
    for k0 in range(0, reduction, BLOCK_K):
        tap, weight_tap, ci = taps_and_channels(k0, IN_WIDTH, BLOCK_K)
        c = tile * IN_WIDTH + ci
        valid = (k0 + tl.arange(0, BLOCK_K) < reduction) & (c < C)
        if ONE_GROUP:
            valid &= ci // GROUP_IN == only_group
        inside = row_valid[:, None] & valid[None, :]
        offset = (c * x_c)[None, :]
        if R * S == 1:
            offset += (ih0 * x_h + iw0 * x_w)[:, None]
            in_h, in_w = ih0[:, None], iw0[:, None]
        else:
            in_h = ih0[:, None] + tap // S * DIL_H
            in_w = iw0[:, None] + tap % S * DIL_W
            offset += in_h * x_h + in_w * x_w
        if PADDED:
            inside &= (in_h >= 0) & (in_h < H) & (in_w >= 0) & (in_w < W)
        a = load_activated(
            x + rows[:, None] + offset, inside, mean, scale, bias, c, valid, slope, IN_ACT
        )
        b = load_weight(
            weight, tile, weight_tap, ci, n, valid, R * S, GROUP_IN, OUT_WIDTH, DIAGONAL
        )
        acc = dot(a, b, acc, PRECISION)
    return acc


@triton.autotune(
    FPROP_CONFIGS,
    key=[
        "C", "K", "IN_WIDTH", "OUT_WIDTH", "R", "S", "STRIDE_H", "STRIDE_W", "DIL_H", "DIL_W",
        "IN_ACT", "PRECISION", "SIZE_CLASS", "BLOCK_M",
    ],
    prune_configs_by={"early_config_prune": keep_fitting_fprop},
    cache_results=True,
)  # fmt: skip
@triton.jit
def fprop_kernel(
    x, weight, y, shift, residual, in_mean, in_scale, in_bias, tile_mean, tile_m2,
    H, W, OH, OW, pixels, channel_tiles, slope,
    x_n, x_c, x_h, x_w, res_n, res_c, res_h, res_w,
    C: tl.constexpr, K: tl.constexpr, IN_WIDTH: tl.constexpr, OUT_WIDTH: tl.constexpr,
    GROUP_IN: tl.constexpr, DIAGONAL: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, PADDED: tl.constexpr,
    IN_ACT: tl.constexpr, ACT: tl.constexpr, PRECISION: tl.constexpr, SIZE_CLASS: tl.constexpr,
    BLOCK_M: tl.constexpr, BAND: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of BLOCK_M output pixels by BLOCK_N channels."""
    wide: tl.constexpr = (OUT_WIDTH + BLOCK_N - 1) // BLOCK_N
    tile_m, column = tile_of_program((pixels + BLOCK_M - 1) // BLOCK_M, channel_tiles * wide, BAND)
    tile = column // wide
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column % wide * BLOCK_N + tl.arange(0, BLOCK_N)
    row_valid = m < pixels
    image, oh, ow = m // (OH * OW), m // OW % OH, m % OW
    ih0, iw0 = oh * STRIDE_H - PAD_H, ow * STRIDE_W - PAD_W
    rows = image.to(tl.int64) * x_n  # a batch may have more than 2**31 elements, an image not
    acc = _accumulate(
        x, weight, in_mean, in_scale, in_bias, rows, ih0, iw0, row_valid, tile, n, 0,
        H, W, slope, x_c, x_h, x_w,
        C, IN_WIDTH, OUT_WIDTH, GROUP_IN, DIAGONAL, False, R, S, DIL_H, DIL_W, PADDED, IN_ACT,
        PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    if DIAGONAL:
        # 0 times infinity: what is not finite in one group must not reach its neighbours.
        if any_not_finite(acc):
            for group in range(IN_WIDTH // GROUP_IN):
                alone = _accumulate(
                    x, weight, in_mean, in_scale, in_bias, rows, ih0, iw0, row_valid, tile, n,
                    group, H, W, slope, x_c, x_h, x_w,
                    C, IN_WIDTH, OUT_WIDTH, GROUP_IN, DIAGONAL, True, R, S, DIL_H, DIL_W, PADDED,
                    IN_ACT, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
                )  # fmt: skip
                acc = tl.where((n // GROUP_IN == group)[None, :], alone, acc)

    k = tile * OUT_WIDTH + n
    k_valid = (n < OUT_WIDTH) & (k < K)
    if tile_mean is not None:
        count = tl.minimum(pixels - tile_m * BLOCK_M, BLOCK_M).to(tl.float32)
        mean = sum_rows(acc) / count
        deviation = tl.where(row_valid[:, None], acc - mean[None, :], 0.0)
        part = tile_m.to(tl.int64) * K + k
        tl.store(tile_mean + part, mean, mask=k_valid)
        tl.store(tile_m2 + part, sum_rows(deviation * deviation), mask=k_valid)
    if shift is not None:
        acc += tl.load(shift + k, mask=k_valid, other=0)[None, :]
    out_valid = row_valid[:, None] & k_valid[None, :]
    if residual is not None:
        at = (image.to(tl.int64) * res_n + oh * res_h + ow * res_w)[:, None] + (k * res_c)[None, :]
        acc += widen(tl.load(residual + at, mask=out_valid, other=0))
    acc = activate(acc, slope, ACT)
    out = y + m.to(tl.int64)[:, None] * K + k[None, :]
    tl.store(out, narrow(acc, y.dtype.element_ty), mask=out_valid)
