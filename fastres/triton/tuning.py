"""Tile sizes: which are tried for a problem, and which are fixed so that results are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from .tiles import INTERPRETED

#: Rows of tiles that run side by side, see tiles.tile_of_program.
BAND = 8

# (BLOCK_N, BLOCK_K, warps, stages)
_GEMM = (
    (16, 16, 4, 4),
    (32, 16, 4, 4),
    (64, 16, 4, 4),
    (16, 32, 4, 4),
    (16, 64, 4, 3),
    (32, 32, 4, 4),
    (32, 64, 4, 3),
    (64, 32, 4, 4),
    (64, 64, 4, 3),
    (128, 32, 4, 4),
    (128, 64, 8, 3),
    (256, 64, 8, 3),
)
GEMM_CONFIGS = [
    triton.Config({"BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages)
    for n, k, warps, stages in _GEMM
]


def keep_fitting(
    configs: Sequence[triton.Config], named: Mapping[str, Any], **keywords: Any
) -> list[triton.Config]:
    """Drops tiles wider than the problem, and the narrowest where wider ones fill it."""
    arguments = {**named, **keywords}
    reduction = arguments["IN_WIDTH"] * arguments["R"] * arguments["S"]
    width, depth = _up_to_power_of_2(arguments["OUT_WIDTH"], 16, 256), 64
    if arguments["x"].dtype == torch.float32:  # twice the registers and shared memory
        width, depth = min(width, 64), 32
    if arguments["DIAGONAL"]:  # few channels a tap: each tap in a block has its own addresses
        depth //= 2
    depth = _up_to_power_of_2(reduction, 16, depth)
    fitting = [
        config
        for config in configs
        if width // 4 <= config.kwargs["BLOCK_N"] <= width
        and min(32, depth) <= config.kwargs["BLOCK_K"] <= depth
    ]
    # The interpreter measures nothing; large tiles are fewest calls.
    return fitting[-1:] if INTERPRETED.value else fitting


def _up_to_power_of_2(value: int, least: int, most: int) -> int:
    return max(least, min(most, triton.next_power_of_2(value)))


def rows_per_tile(x: Tensor, pixels: int, columns: int) -> int:
    """Output pixels of one tile.

    Not tuned: per-channel sums are taken tile by tile, and their bits must not depend on timings.

    Args:
        x: the kernel's input.
        pixels: of all images.
        columns: tiles side by side that every row of tiles has, for 64 channels each.
    """
    enough = 4 * 132  # a few tiles for each multiprocessor of the largest GPUs
    if INTERPRETED.value:
        return 128
    many = triton.cdiv(pixels, 128) * columns >= enough
    return 128 if many and x.dtype != torch.float32 else 64


def size_class(pixels: int) -> int:
    """What tuned tile sizes are kept under: problems of one power of 2 share them."""
    return max(1, pixels).bit_length()


def dot_precision(x: Tensor) -> str:
    """How tensor cores may round float32 operands: as torch.backends.cuda.matmul allows."""
    tf32 = x.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return "tf32" if tf32 else "ieee"
