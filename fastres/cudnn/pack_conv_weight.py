"""pack_conv_weight: the bytes that csrc/cuda/pack_conv_weight.cpp makes, and so usable on both."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..schema.packed_weight import HEADER_BYTES, KRSC, KRSC_COPIES, PackedHeader


def pack_conv_weight(
    weight: Tensor, scale: Tensor | None, groups: int, algorithm: str = "direct"
) -> Tensor:
    """Packs ``weight * scale[:, None, None, None]``, see ``fastres.ops.pack_conv_weight``.

    ``algorithm`` is checked and otherwise ignored: cuDNN chooses its own.
    """
    return reference.pack_conv_weight(weight, scale, groups, algorithm, layout=KRSC)


def packed_operand(packed: Tensor, shape: Sequence[int], groups: int, dtype: torch.dtype) -> Tensor:
    """The weight [K, C/groups, R, S] in a packed tensor, in the dtype; a view of it if it can be.

    Raises:
        ValueError: ``packed`` was not made by pack_conv_weight.
    """
    _, cg, _, s = shape
    total, start, pitch = _place(*shape, groups, dtype)
    if packed.shape[0] != total:  # another backend's: no other layout has this size
        return reference.unpack_conv_weight(packed).to(dtype)
    if packed.storage_offset() % dtype.itemsize:
        packed = packed.clone()
    values = packed.view(dtype)
    first = values.storage_offset() + start  # as_strided counts from the storage's beginning
    return values.as_strided(shape, (pitch, 1, s * cg, cg), first)


@functools.cache
def _place(
    k: int, cg: int, r: int, s: int, groups: int, dtype: torch.dtype
) -> tuple[int, int, int]:
    """Bytes of a packed weight; the first element and the step between rows of its copy."""
    header = PackedHeader(KRSC, torch.float32, k, cg, r, s, groups)
    rows, pitch = header.payload_shape()
    before = KRSC_COPIES[: KRSC_COPIES.index(dtype)]
    start = HEADER_BYTES + rows * pitch * sum(copy.itemsize for copy in before)
    return header.total_bytes(), start // dtype.itemsize, pitch
