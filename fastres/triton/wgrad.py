"""The weight gradient as a GEMM over output pixels, split among programs and summed in order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fprop import Affine, Geometry
from .operands import channel_tiles
from .output_gradient import OutputGradient, load_output_gradient
from .tiles import dot, load_activated, narrow, taps_and_channels
from .tuning import WGRAD_CONFIGS, dot_precision, keep_fitting_wgrad, size_class, wgrad_split

_SUM_BLOCK = 1024


def wgrad(
    gradient: OutputGradient,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    prologue: Affine,
    in_act: str,
    act_slope: float,
    groups: int,
) -> Tensor:
    """The gradient of ``fprop``'s weight, of the dtype and strides of ``weight``.

    Args:
        gradient: of the output, [N, K, OH, OW].
        x: fprop's input, [N, C, H, W].
        weight: [K, C/groups, R, S].
        geometry: of fprop.
        prologue: of fprop.
        in_act: of fprop.
        act_slope: of in_act.
        groups: of fprop.
    """
    n, c, h, w = x.shape
    k, group_in, r, s = weight.shape
    _, _, oh, ow = gradient.grad_y.shape
    pixels, tiles = n * oh * ow, channel_tiles(k, group_in, groups)
    grad_weight = torch.empty_like(weight)
    if pixels == 0:
        return grad_weight.zero_()
    rows = wgrad_split(pixels, tiles, r * s)
    parts = x.new_empty((triton.cdiv(pixels, rows), k * r * s * group_in), dtype=torch.float32)

    def grid(meta: dict[str, int]) -> tuple[int, int]:
        tall = triton.cdiv(tiles.out_width, meta["BLOCK_M"])
        wide = triton.cdiv(r * s * tiles.in_width, meta["BLOCK_N"])
        return tiles.number * tall * wide, parts.shape[0]

    wgrad_kernel[grid](
        *gradient, x, *prologue, parts,
        h, w, oh, ow, pixels, act_slope, *gradient.strides(), *x.stride(),
        C=c, K=k, IN_WIDTH=tiles.in_width, OUT_WIDTH=tiles.out_width,
        GROUP_IN=tiles.group_in, DIAGONAL=tiles.diagonal, R=r, S=s,
        STRIDE_H=geometry.stride[0], STRIDE_W=geometry.stride[1],
        PAD_H=geometry.padding[0], PAD_W=geometry.padding[2],
        DIL_H=geometry.dilation[0], DIL_W=geometry.dilation[1], PADDED=any(geometry.padding),
        IN_ACT=in_act, PRECISION=dot_precision(x), SIZE_CLASS=size_class(pixels), ROWS=rows,
    )  # fmt: skip
    _sum_splits(parts, grad_weight)
    return grad_weight


def _sum_splits(parts: Tensor, grad_weight: Tensor) -> None:
    """Sums [splits, K * R * S * C/groups] into a tensor [K, C/groups, R, S] of any strides."""
    splits, size = parts.shape
    _, group_in, r, s = grad_weight.shape
    sum_splits_kernel[(triton.cdiv(size, _SUM_BLOCK),)](
        parts, grad_weight, splits, size, *grad_weight.stride(),
        GROUP_IN=group_in, R=r, S=s, BLOCK=_SUM_BLOCK,
    )  # fmt: skip


@triton.autotune(
    WGRAD_CONFIGS,
    key=[
        "C", "K", "IN_WIDTH", "OUT_WIDTH", "R", "S", "STRIDE_H", "STRIDE_W", "DIL_H", "DIL_W",
        "IN_ACT", "PRECISION", "SIZE_CLASS",
    ],
    prune_configs_by={"early_config_prune": keep_fitting_wgrad},
    cache_results=True,
)  # fmt: skip
@triton.jit
def wgrad_kernel(
    grad_y, y, mean, grad_scale, grad_mean, grad_m2, x, in_mean, in_scale, in_bias, parts,
    H, W, OH, OW, pixels, slope,
    g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w, x_n, x_c, x_h, x_w,
    C: tl.constexpr, K: tl.constexpr, IN_WIDTH: tl.constexpr, OUT_WIDTH: tl.constexpr,
    GROUP_IN: tl.constexpr, DIAGONAL: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, PADDED: tl.constexpr, IN_ACT: tl.constexpr,
    PRECISION: tl.constexpr, SIZE_CLASS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M output channels by BLOCK_N taps and input channels, of ROWS output pixels."""
    tall: tl.constexpr = (OUT_WIDTH + BLOCK_M - 1) // BLOCK_M
    wide: tl.constexpr = (R * S * IN_WIDTH + BLOCK_N - 1) // BLOCK_N
    tile, block = tl.program_id(0) // (tall * wide), tl.program_id(0) % (tall * wide)
    ki = block // wide * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tile * OUT_WIDTH + ki
    k_valid = (ki < OUT_WIDTH) & (k < K)
    first = block % wide * BLOCK_N
    tap, _, ci = taps_and_channels(first, IN_WIDTH, BLOCK_N)
    c = tile * IN_WIDTH + ci
    c_valid = (first + tl.arange(0, BLOCK_N) < R * S * IN_WIDTH) & (c < C)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for m0 in range(
        tl.program_id(1) * ROWS, tl.minimum(tl.program_id(1) * ROWS + ROWS, pixels), BLOCK_K
    ):
        m = m0 + tl.arange(0, BLOCK_K)
        row_valid = m < pixels
        image = (m // (OH * OW)).to(tl.int64)
        oh, ow = (m // OW % OH)[:, None], (m % OW)[:, None]
        a = load_output_gradient(
            grad_y, y, mean, grad_scale, grad_mean, grad_m2, image, oh, ow, k,
            row_valid[:, None] & k_valid[None, :], k_valid, pixels,
            g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w,
        )  # fmt: skip
        ih = oh * STRIDE_H - PAD_H + tap // S * DIL_H
        iw = ow * STRIDE_W - PAD_W + tap % S * DIL_W
        inside = row_valid[:, None] & c_valid[None, :]
        if PADDED:
            inside &= (ih >= 0) & (ih < H) & (iw >= 0) & (iw < W)
        at = (image * x_n)[:, None] + ih * x_h + iw * x_w + (c * x_c)[None, :]
        b = load_activated(x + at, inside, in_mean, in_scale, in_bias, c, c_valid, slope, IN_ACT)
        acc = dot(tl.trans(a), b, acc, PRECISION)
    inside = k_valid[:, None] & c_valid[None, :]
    if DIAGONAL:
        inside &= (ki // GROUP_IN)[:, None] == (ci // GROUP_IN)[None, :]
    at = (k[:, None] * (R * S) + tap) * GROUP_IN + (ci % GROUP_IN)[None, :]
    split = tl.program_id(1).to(tl.int64) * (K * R * S * GROUP_IN)
    tl.store(parts + split + at, acc, mask=inside)


@triton.jit
def sum_splits_kernel(
    parts, grad_weight, splits, size, w_k, w_c, w_r, w_s,
    GROUP_IN: tl.constexpr, R: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK values, from the first split to the last."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        at = parts + tl.cast(split, tl.int64) * size
        total += tl.load(at + i, mask=i < size, other=0)
    c, tap, k = i % GROUP_IN, i // GROUP_IN % (R * S), i // (GROUP_IN * R * S)
    out = grad_weight + k.to(tl.int64) * w_k + c * w_c + tap // S * w_r + tap % S * w_s
    tl.store(out, narrow(total, grad_weight.dtype.element_ty), mask=i < size)
