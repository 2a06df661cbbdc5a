"""The header and the layouts of a packed weight, as csrc/packed_weight.h defines them."""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# Layouts of the payload.
PLAIN, IGEMM, LANES, WINOGRAD, KRSC, BFLOAT16 = 0, 1, 2, 3, 4, 5
CHANNEL_BLOCK = 16  # output channels in one block of IGEMM, LANES and WINOGRAD
KRSC_COPIES = (torch.float32, torch.bfloat16, torch.float16)  # one after the other
KRSC_TAIL = 16  # bytes after them
BFLOAT16_CHANNELS = 32  # of which both numbers of channels of a group are multiples in BFLOAT16

_MAGIC = 0x53525446  # "FTRS"
_VERSION = 1
_HEADER = struct.Struct("<9i28x")
HEADER_BYTES = _HEADER.size
_PAYLOAD_DTYPES = (torch.float32, torch.float64)


class PackedHeader(NamedTuple):
    """What a packed weight says about itself."""

    layout: int
    dtype: torch.dtype
    out_channels: int
    group_in_channels: int
    kernel_h: int
    kernel_w: int
    groups: int

    def weight_shape(self) -> tuple[int, int, int, int]:
        """The shape of the weight that was packed, [K, C/groups, R, S]."""
        return (self.out_channels, self.group_in_channels, self.kernel_h, self.kernel_w)

    def to_bytes(self) -> bytes:
        """The header as it stands in a packed tensor."""
        dtype = _PAYLOAD_DTYPES.index(self.dtype)
        return _HEADER.pack(_MAGIC, _VERSION, self.layout, dtype, *self.weight_shape(), self.groups)

    def payload_shape(self) -> tuple[int, ...]:
        """The payload's shape in its layout."""
        k, cg, r, s = self.weight_shape()
        if self.layout == IGEMM:
            return (self.groups, -(-(k // self.groups) // CHANNEL_BLOCK), r, s, cg, CHANNEL_BLOCK)
        if self.layout == LANES:
            return (-(-k // CHANNEL_BLOCK), r, s, cg, CHANNEL_BLOCK)
        if self.layout == WINOGRAD:
            return (4, 4, -(-k // CHANNEL_BLOCK), cg, CHANNEL_BLOCK)
        if self.layout == BFLOAT16:
            wide = BFLOAT16_CHANNELS
            return (self.groups, k // self.groups // wide, r, s, cg // wide, 2, 16, 16, 2)
        if self.layout == KRSC:  # one of the copies
            return (k, -(-r * s * cg // 8) * 8)
        return (k, cg, r, s)

    def total_bytes(self) -> int:
        """Size of the packed tensor: header and payload."""
        values = math.prod(self.payload_shape())
        if self.layout == KRSC:
            return HEADER_BYTES + values * sum(d.itemsize for d in KRSC_COPIES) + KRSC_TAIL
        return HEADER_BYTES + values * self.payload_dtype().itemsize

    def payload_dtype(self) -> torch.dtype:
        """What the payload's values are stored as; of KRSC, its first copy's."""
        return torch.bfloat16 if self.layout == BFLOAT16 else self.dtype


def suits_bfloat16(shape: tuple[int, ...], groups: int) -> bool:
    """Whether a weight [K, C/groups, R, S] can be packed in BFLOAT16."""
    return all(count % BFLOAT16_CHANNELS == 0 for count in (shape[0] // groups, shape[1]))


def uses_lanes_layout(group_out: int, group_in: int, groups: int) -> bool:
    """Whether kernels want LANES rather than IGEMM: groups too narrow to fill a block alone."""
    return groups > 1 and group_out == group_in and group_in in (1, 2, 4, 8)


def native_layout(shape: tuple[int, ...], groups: int, algorithm: str) -> int:
    """The layout that kernels want for a weight [K, C/groups, R, S]."""
    if algorithm in ("winograd", "bfloat16"):
        return WINOGRAD if algorithm == "winograd" else BFLOAT16
    return LANES if uses_lanes_layout(shape[0] // groups, shape[1], groups) else IGEMM


# Reading from a GPU waits for it, and cannot be done while a graph is captured: once per tensor and
# version of it.
_heads: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _head(packed: Tensor) -> bytes:
    if packed.device.type == "cpu":
        return bytes(packed[:HEADER_BYTES].tolist())
    version = 0 if packed.is_inference() else packed._version
    known: tuple[int, bytes] | None = _heads.get(packed)
    if known is None or known[0] != version:
        known = _heads[packed] = (version, bytes(packed[:HEADER_BYTES].tolist()))
    return known[1]


def read_header(packed: Tensor, name: str = "packed") -> PackedHeader:
    """The header of a packed weight.

    Raises:
        ValueError: ``packed`` (called ``name`` in the message) was not made by pack_conv_weight, by
            another version of it, or was cut.
    """
    if packed.dim() != 1 or packed.dtype != torch.uint8 or packed.shape[0] < HEADER_BYTES:
        raise ValueError(
            f"{name} must be a 1-D uint8 tensor made by pack_conv_weight, got {packed.dtype} of "
            f"shape {list(packed.shape)}"
        )
    magic, version, layout, dtype, k, cg, r, s, groups = _HEADER.unpack(_head(packed))
    if magic != _MAGIC:
        raise ValueError(f"{name} was not made by pack_conv_weight: it has no valid header")
    if version != _VERSION:
        raise ValueError(f"{name} has packing version {version}, expected {_VERSION}: pack again")
    known = layout in (PLAIN, IGEMM, LANES, WINOGRAD, KRSC, BFLOAT16) and dtype in (0, 1)
    if not known or min(k, cg, r, s, groups) < 1 or k % groups:
        raise ValueError(f"{name} has a corrupt header")
    header = PackedHeader(layout, _PAYLOAD_DTYPES[dtype], k, cg, r, s, groups)
    if packed.shape[0] != header.total_bytes():
        raise ValueError(
            f"{name} has {packed.shape[0]} bytes, its header says {header.total_bytes()}"
        )
    return header
