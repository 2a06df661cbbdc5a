"""pack_conv_weight: the bytes that csrc/cpu/pack_conv_weight.cpp makes, and so usable on both."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..schema import checks
from ..schema.packed_weight import HEADER_BYTES, PackedHeader, native_layout
from .operands import pack_values


def pack_conv_weight(
    weight: Tensor, scale: Tensor | None, groups: int, algorithm: str = "direct"
) -> Tensor:
    """Packs ``weight * scale[:, None, None, None]``, see ``fastres.ops.pack_conv_weight``.

    ``algorithm`` is checked and otherwise ignored: tensor cores gain nothing from Winograd's
    algorithm, whose transforms are bound by memory.
    """
    checks.pack_conv_weight_check(weight, scale, groups, algorithm)
    if weight.dtype == torch.float64:
        return reference.pack_conv_weight(weight, scale, groups, algorithm)
    k, cg, r, s = weight.shape
    layout = native_layout((k, cg, r, s), groups, "direct")
    header = PackedHeader(layout, torch.float32, k, cg, r, s, groups)
    packed = weight.new_empty(header.total_bytes(), dtype=torch.uint8)
    head = torch.frombuffer(bytearray(header.to_bytes()), dtype=torch.uint8)
    packed[:HEADER_BYTES].copy_(head)
    pack_values(weight, scale, groups, packed[HEADER_BYTES:].view(torch.float32))
    return packed
