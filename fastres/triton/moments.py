"""Second stages of per-channel sums: what tiles left behind, merged in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import sum_rows

_TILES, _CHANNELS = 128, 16  # that one step of one program takes in


def merge_moments(means: Tensor, m2s: Tensor, rows: int, pixels: int) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations of all pixels, from those of tiles of ``rows`` pixels.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979).

    Args:
        means: [tiles, C] float32; the last tile may have fewer pixels.
        m2s: of the same shape.
        rows: pixels of a tile.
        pixels: of all.

    Returns:
        Two vectors [C], 0 where there are no pixels.
    """
    tiles, channels = means.shape
    mean, m2 = (torch.zeros(channels, device=means.device) for _ in range(2))
    if tiles:
        merge_moments_kernel[(triton.cdiv(channels, _CHANNELS),)](
            means, m2s, mean, m2, tiles, rows, pixels, channels, TILES=_TILES, CHANNELS=_CHANNELS
        )
    return mean, m2


@triton.jit
def merge_moments_kernel(
    means, m2s, mean_out, m2_out, tiles, rows, pixels, channels,
    TILES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """CHANNELS channels, TILES tiles at a time."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    valid = c < channels
    # From the first tile's mean on, all sums are of deviations: small, however large the mean.
    mean = tl.load(means + c, mask=valid, other=0)
    m2 = tl.zeros((CHANNELS,), tl.float32)
    count = 0.0
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)
        inside = (tile < tiles)[:, None] & valid[None, :]
        at = tile.to(tl.int64)[:, None] * channels + c[None, :]
        size = tl.maximum(tl.minimum(pixels - tile * rows, rows), 0).to(tl.float32)
        total = tl.sum(size, axis=0)
        deviation = tl.where(inside, tl.load(means + at, mask=inside, other=0) - mean[None, :], 0.0)
        delta = sum_rows(deviation * size[:, None]) / total
        spread = (deviation - delta[None, :]) * (deviation - delta[None, :]) * size[:, None]
        m2 += sum_rows(tl.load(m2s + at, mask=inside, other=0) + spread)
        m2 += delta * delta * (count * total / (count + total))
        count += total
        mean += delta * (total / count)
    tl.store(mean_out + c, mean, mask=valid)
    tl.store(m2_out + c, m2, mask=valid)


def sum_parts(parts: Tensor) -> list[Tensor]:
    """Sums [vectors, tiles, C] float32 over the tiles: vectors [C], which share no memory."""
    vectors, tiles, channels = parts.shape
    out = parts.new_zeros(vectors, channels)
    if tiles:
        sum_parts_kernel[(triton.cdiv(channels, _CHANNELS), vectors)](
            parts, out, tiles, channels, TILES=_TILES, CHANNELS=_CHANNELS
        )
    return [vector.clone() for vector in out]


@triton.jit
def sum_parts_kernel(
    parts, out, tiles, channels, TILES: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """CHANNELS channels of one vector."""
    vector = tl.program_id(1)
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    valid = c < channels
    total = tl.zeros((CHANNELS,), tl.float32)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)
        at = (vector * tiles + tile).to(tl.int64)[:, None] * channels + c[None, :]
        inside = (tile < tiles)[:, None] & valid[None, :]
        total += sum_rows(tl.load(parts + at, mask=inside, other=0))
    tl.store(out + vector * channels + c, total, mask=valid)
