"""Weights as the implicit GEMM kernels read them, and how groups are laid on tiles.

The values lie as in the igemm and lanes layouts of csrc/packed_weight.h, in blocks of 16 output
channels. Both are one formula here: a *channel tile* is a group, or, where groups are too narrow
for tl.dot's least size of 16, 16 channels of several groups, which form a block-diagonal matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from ..schema.packed_weight import (
    CHANNEL_BLOCK,
    HEADER_BYTES,
    PackedHeader,
    native_layout,
    read_header,
    uses_lanes_layout,
)
from .tiles import INTERPRETED, narrow

_PACK_BLOCK = 1 << 16 if INTERPRETED.value else 1024  # the interpreter takes its time per program


class ChannelTiles(NamedTuple):
    """How a grouped convolution's channels are split among programs."""

    number: int
    """Of tiles: tile i takes input channels from ``i * in_width`` on to output channels from
    ``i * out_width`` on."""
    in_width: int
    out_width: int
    group_in: int
    """Input channels of one group, which is what the packed weight holds for an output channel."""
    diagonal: bool
    """Whether a tile holds several groups."""


def channel_tiles(out_channels: int, group_in: int, groups: int) -> ChannelTiles:
    """The tiles of a convolution with a weight [K, C/groups, R, S]."""
    group_out = out_channels // groups
    if uses_lanes_layout(group_out, group_in, groups):
        number = triton.cdiv(out_channels, CHANNEL_BLOCK)
        return ChannelTiles(number, CHANNEL_BLOCK, CHANNEL_BLOCK, group_in, True)
    return ChannelTiles(groups, group_in, group_out, group_in, False)


class Operand(NamedTuple):
    """A weight in a kernel's layout and in the dtype that it is multiplied in."""

    values: Tensor
    out_channels: int
    in_channels: int
    kernel_size: tuple[int, int]
    tiles: ChannelTiles


def empty_channels_last(like: Tensor, shape: Sequence[int]) -> Tensor:
    """An empty tensor [N, C, H, W] of the dtype of ``like``, dense in the order N, H, W, C."""
    n, c, h, w = shape
    return like.new_empty_strided((n, c, h, w), (h * w * c, 1, w * c, c))


def weight_operand(
    weight: Tensor, groups: int, dtype: torch.dtype, scale: Tensor | None = None
) -> Operand:
    """The operand of a convolution with ``weight * scale``, [K, C/groups, R, S] of any strides."""
    k, cg, r, s = weight.shape
    values = _empty_values(weight, (k, cg, r, s), groups, dtype)
    tiles = pack_values(weight, scale, groups, values)
    return Operand(values, k, cg * groups, (r, s), tiles)


def packed_operand(packed: Tensor, dtype: torch.dtype) -> Operand:
    """The operand in a packed weight of any layout.

    Reduced dtypes cost a pass over the weight, in return for which tiles are copied to shared
    memory as they are.
    """
    header = read_header(packed)
    shape = header.weight_shape()
    if header.layout != native_layout(shape, header.groups, "direct"):
        return weight_operand(reference.unpack_conv_weight(packed), header.groups, dtype)
    payload = packed[HEADER_BYTES:]
    if payload.data_ptr() % 4:  # a slice of a byte tensor may start where a float must not
        payload = payload.clone()
    k, cg, r, s = shape
    tiles = channel_tiles(k, cg, header.groups)
    values = payload.view(torch.float32).to(dtype)
    return Operand(values, k, cg * header.groups, (r, s), tiles)


def transposed_operand(weight: Tensor, groups: int, dtype: torch.dtype) -> Operand:
    """The operand of its data gradient: input and output channels of each group trade places."""
    k, cg, r, s = weight.shape
    values = _empty_values(weight, (cg * groups, k // groups, r, s), groups, dtype)
    tiles = pack_values(weight, None, groups, values, transpose=True)
    return Operand(values, cg * groups, k, (r, s), tiles)


def _empty_values(
    like: Tensor, shape: tuple[int, int, int, int], groups: int, dtype: torch.dtype
) -> Tensor:
    layout = native_layout(shape, groups, "direct")
    header = PackedHeader(layout, torch.float32, *shape, groups)
    return like.new_empty(header.payload_shape(), dtype=dtype)


def pack_values(
    weight: Tensor, scale: Tensor | None, groups: int, out: Tensor, *, transpose: bool = False
) -> ChannelTiles:
    """Writes ``weight * scale`` in the kernels' layout, rounded to the dtype of ``out``."""
    k, cg, r, s = weight.shape
    kg = k // groups
    w_k, w_c, w_r, w_s = weight.stride()
    channels, group_out, group_in, w_out, w_in = k, kg, cg, w_k, w_c
    if transpose:
        channels, group_out, group_in, w_out, w_in = cg * groups, cg, kg, w_c, w_k
    tiles = channel_tiles(channels, group_in, groups)
    pack_kernel[(triton.cdiv(out.numel(), _PACK_BLOCK),)](
        weight, scale, out, out.numel(), kg * w_k, w_out, w_in, w_r, w_s,
        CHANNELS=channels, GROUP_OUT=group_out, GROUP_IN=group_in, OUT_WIDTH=tiles.out_width,
        R=r, S=s, BLOCK=_PACK_BLOCK,
    )  # fmt: skip
    return tiles


@triton.jit
def pack_kernel(
    weight, scale, out, size,
    w_group, w_out, w_in, w_r, w_s,
    CHANNELS: tl.constexpr, GROUP_OUT: tl.constexpr, GROUP_IN: tl.constexpr,
    OUT_WIDTH: tl.constexpr, R: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gathers a weight into [channel tile][block of 16][tap][input channel][16]."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lane = i % 16
    c = i // 16 % GROUP_IN
    tap = i // (16 * GROUP_IN) % (R * S)
    block = i // (16 * GROUP_IN * R * S)
    blocks: tl.constexpr = (OUT_WIDTH + 15) // 16
    within = block % blocks * 16 + lane
    k = block // blocks * OUT_WIDTH + within
    valid = (i < size) & (within < OUT_WIDTH) & (k < CHANNELS)
    offset = k // GROUP_OUT * w_group + k % GROUP_OUT * w_out + c * w_in
    offset += tap // S * w_r + tap % S * w_s
    value = tl.load(weight + offset, mask=valid, other=0).to(tl.float32)
    if scale is not None:
        value *= tl.load(scale + k, mask=valid, other=0)
    tl.store(out + i, narrow(value, out.dtype.element_ty), mask=i < size)
