"""Tile sizes: which are tried for a problem, and which are fixed so that results are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from .operands import ChannelTiles
from .tiles import INTERPRETED

#: Rows of tiles that run side by side, see tiles.tile_of_program.
BAND = 8

Prune = Callable[..., list[triton.Config]]


def _gemm_configs(*sizes: tuple[int, int, int, int]) -> list[triton.Config]:
    """From (BLOCK_N, BLOCK_K, warps, stages)."""
    return [
        triton.Config({"BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages)
        for n, k, warps, stages in sizes
    ]


_NARROW = (
    (16, 16, 4, 4),
    (32, 16, 4, 4),
    (64, 16, 4, 4),
    (16, 32, 4, 4),
    (16, 64, 4, 3),
    (32, 32, 4, 4),
)
FPROP_CONFIGS = _gemm_configs(
    *_NARROW,
    (32, 64, 4, 3),
    (64, 32, 4, 4),
    (64, 64, 4, 3),
    (128, 32, 4, 4),
    (128, 64, 8, 3),
    (256, 64, 8, 3),
)
# Twice the loads, and an epilogue that loads too: more warps share them.
DGRAD_CONFIGS = _gemm_configs(
    *_NARROW,
    (32, 64, 8, 3),
    (64, 32, 8, 4),
    (64, 64, 8, 3),
)
WGRAD_CONFIGS = [
    triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": 32}, num_warps=warps, num_stages=3)
    for m, n, warps in (
        (16, 32, 4),
        (16, 64, 4),
        (32, 64, 4),
        (64, 64, 4),
        (64, 128, 4),
        (128, 64, 4),
        (128, 128, 8),
    )
]


def _keep_fitting(most: int, most_float32: int) -> Prune:
    """Drops tiles wider than the problem, or than registers allow, and the narrowest of the rest.

    Args:
        most: output channels of a tile.
        most_float32: the same in float32, which takes twice the registers and shared memory.
    """

    def prune(
        configs: Sequence[triton.Config], named: Mapping[str, Any], **keywords: Any
    ) -> list[triton.Config]:
        arguments = {**named, **keywords}
        wide = arguments["x"].dtype == torch.float32
        width = _up_to_power_of_2(arguments["OUT_WIDTH"], 16, most_float32 if wide else most)
        depth = 32 if wide else 64
        if arguments["DIAGONAL"]:  # one tap a block: others would have addresses of their own
            depth = 16
        reduction = arguments["IN_WIDTH"] * arguments["R"] * arguments["S"]
        depth = _up_to_power_of_2(reduction, 16, depth)
        if depth == 16:  # too little work for more
            width = min(width, 64)
        fitting = [
            config
            for config in configs
            if max(16, width // (2 if wide else 4)) <= config.kwargs["BLOCK_N"] <= width
            and min(32, depth) <= config.kwargs["BLOCK_K"] <= depth
        ]
        # The interpreter measures nothing; large tiles are fewest calls.
        return fitting[-1:] if INTERPRETED.value else fitting

    return prune


keep_fitting_fprop, keep_fitting_dgrad = _keep_fitting(256, 64), _keep_fitting(64, 32)


def keep_fitting_wgrad(
    configs: Sequence[triton.Config], named: Mapping[str, Any], **keywords: Any
) -> list[triton.Config]:
    """As _keep_fitting, for tiles of output channels by taps and input channels."""
    arguments = {**named, **keywords}
    float32 = arguments["x"].dtype == torch.float32
    columns = arguments["IN_WIDTH"] * arguments["R"] * arguments["S"]
    tall = _up_to_power_of_2(arguments["OUT_WIDTH"], 16, 32 if float32 else 128)
    wide = _up_to_power_of_2(columns, 32, 64 if float32 else 128)
    fitting = [
        config
        for config in configs
        if tall // 2 <= config.kwargs["BLOCK_M"] <= tall
        and wide // 2 <= config.kwargs["BLOCK_N"] <= wide
    ]
    if INTERPRETED.value:
        sizes = {"BLOCK_M": tall, "BLOCK_N": wide, "BLOCK_K": 32}
        return [triton.Config(sizes)]
    # Some problems are flatter, or narrower, than any tile that is as wide or as tall as they are.
    return fitting or list(configs[:1])


def _up_to_power_of_2(value: int, least: int, most: int) -> int:
    return max(least, min(most, triton.next_power_of_2(value)))


def rows_per_tile(x: Tensor, pixels: int, tiles: ChannelTiles) -> int:
    """Output pixels of one tile.

    Not tuned: per-channel sums are taken tile by tile, and the second stage has to know of which.

    Args:
        x: the kernel's input.
        pixels: of all images.
        tiles: channel tiles.
    """
    enough = 4 * 132  # a few tiles for each multiprocessor of the largest GPUs
    if INTERPRETED.value:
        return 128
    columns = tiles.number * triton.cdiv(tiles.out_width, 64)
    many = triton.cdiv(pixels, 128) * columns >= enough
    return 128 if many and x.dtype != torch.float32 else 64


def wgrad_split(pixels: int, tiles: ChannelTiles, taps: int) -> int:
    """Output pixels that one program of the weight gradient sums over, a multiple of its blocks.

    Not tuned, like rows_per_tile: the second stage has to know.
    """
    programs = tiles.number * triton.cdiv(tiles.out_width, 64)
    programs *= triton.cdiv(tiles.in_width * taps, 64)
    splits = max(1, min(4 * 132 // programs, pixels // 1024))
    return triton.cdiv(triton.cdiv(pixels, splits), 128) * 128


def size_class(pixels: int) -> int:
    """What tuned tile sizes are kept under: problems of one power of 2 share them."""
    return max(1, pixels).bit_length()


def dot_precision(x: Tensor) -> str:
    """How tensor cores may round float32 operands: as torch.backends.cuda.matmul allows."""
    tf32 = x.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return "tf32" if tf32 else "ieee"
