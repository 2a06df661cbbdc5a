"""Packed weights in plain PyTorch: every layout, there and back. Part of the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..schema import checks
from ..schema.chain import joined_bytes
from ..schema.packed_weight import (
    BFLOAT16,
    CHANNEL_BLOCK,
    HEADER_BYTES,
    IGEMM,
    KRSC,
    KRSC_COPIES,
    KRSC_TAIL,
    LANES,
    PLAIN,
    WINOGRAD,
    PackedHeader,
    read_header,
)


def pack_conv_weight(
    weight: Tensor,
    scale: Tensor | None,
    groups: int,
    algorithm: str = "direct",
    *,
    layout: int = PLAIN,
) -> Tensor:
    """Packs ``weight * scale[:, None, None, None]`` in the given layout.

    Args:
        weight: [K, C/groups, R, S], any float dtype.
        scale: [K], float32 (float64 for a float64 weight), or None for 1.
        groups: the convolution's groups.
        algorithm: checked, and otherwise ignored: the reference convolves directly.
        layout: PLAIN, IGEMM, LANES, WINOGRAD, KRSC or BFLOAT16.

    Returns:
        1-D uint8 tensor: a 64-byte header, then float32 values (float64 for a float64 weight;
        bfloat16 in BFLOAT16).

    Raises:
        ValueError: the arguments do not fit together.
    """
    checks.pack_conv_weight_check(weight, scale, groups, algorithm)
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    # Winograd's transform adds up products that float64 holds exactly, and rounds once.
    scaled = weight.detach().to(torch.float64 if layout == WINOGRAD else dtype)
    if scale is not None:
        scaled = scaled * scale.detach().to(scaled.dtype)[:, None, None, None]
    payload = _arrange(scaled, groups, layout).to(dtype).contiguous()
    k, cg, r, s = weight.shape
    header = PackedHeader(layout, dtype, k, cg, r, s, groups)
    head = torch.frombuffer(bytearray(header.to_bytes()), dtype=torch.uint8).to(weight.device)
    if layout == KRSC:
        copies = [payload.to(copy).view(-1).view(torch.uint8) for copy in KRSC_COPIES]
        return torch.cat([head, *copies, head.new_zeros(KRSC_TAIL)])
    return torch.cat([head, payload.to(header.payload_dtype()).view(-1).view(torch.uint8)])


def _arrange(weight: Tensor, groups: int, layout: int) -> Tensor:
    """The values of a weight [K, C/groups, R, S] in the order of a layout."""
    if layout == PLAIN:
        return weight
    if layout == IGEMM:
        blocks = _blocks(weight.unflatten(0, (groups, -1)), 1)
        return blocks.permute(0, 1, 4, 5, 3, 2)
    if layout == LANES:
        return _blocks(weight, 0).permute(0, 3, 4, 2, 1)
    if layout == WINOGRAD:
        tiles = _winograd_axis(_winograd_axis(weight, 2), 3)
        return _blocks(tiles, 0).permute(3, 4, 0, 2, 1)
    if layout == KRSC:
        rows = weight.permute(0, 2, 3, 1).flatten(1)
        return F.pad(rows, (0, -rows.shape[1] % 8))
    if layout == BFLOAT16:
        panels = weight.unflatten(1, (-1, 16, 2)).unflatten(0, (groups, -1, 2, CHANNEL_BLOCK))
        return panels.permute(0, 1, 7, 8, 4, 2, 5, 3, 6)
    raise ValueError(f"pack_conv_weight: layout must be 0, 1, 2, 3, 4 or 5, got {layout}")


def _blocks(weight: Tensor, axis: int) -> Tensor:
    """Splits an axis of output channels into blocks of CHANNEL_BLOCK, the last filled with 0."""
    missing = -weight.shape[axis] % CHANNEL_BLOCK
    padding = [0, 0] * (weight.dim() - axis - 1) + [0, missing]
    return F.pad(weight, padding).unflatten(axis, (-1, CHANNEL_BLOCK))


def _winograd_axis(kernel: Tensor, axis: int) -> Tensor:
    """G g of F(2, 3) along one axis: three values to four."""
    g0, g1, g2 = kernel.unbind(axis)
    even, odd = (g0 + g2) / 2, g1 / 2
    return torch.stack([g0, even + odd, even - odd, g2], axis)


def _winograd_axis_inverse(tile: Tensor, axis: int) -> Tensor:
    t0, t1, t2, t3 = tile.unbind(axis)
    return torch.stack([t0, t1 - t2, t3], axis)


def unpack_conv_weight(packed: Tensor) -> Tensor:
    """The weight in a packed tensor of any layout, as [K, C/groups, R, S].

    Exact but for WINOGRAD, whose transform rounds, and BFLOAT16.

    Raises:
        ValueError: ``packed`` was not made by pack_conv_weight.
    """
    header = read_header(packed)
    first_copy = packed
    if header.layout == KRSC:
        size = math.prod(header.payload_shape()) * header.dtype.itemsize
        first_copy = packed[: HEADER_BYTES + size]
    # clone: a slice of a byte tensor may start where a float must not.
    payload = first_copy[HEADER_BYTES:].clone(memory_format=torch.contiguous_format)
    values = payload.view(header.payload_dtype()).view(header.payload_shape()).to(header.dtype)
    if header.layout == IGEMM:
        by_group = values.permute(0, 1, 5, 4, 2, 3).flatten(1, 2)
        values = by_group[:, : header.out_channels // header.groups].flatten(0, 1)
    elif header.layout == LANES:
        values = values.permute(0, 4, 3, 1, 2).flatten(0, 1)[: header.out_channels]
    elif header.layout == WINOGRAD:
        tiles = values.permute(2, 4, 3, 0, 1).flatten(0, 1)[: header.out_channels]
        values = _winograd_axis_inverse(_winograd_axis_inverse(tiles, 2), 3)
    elif header.layout == BFLOAT16:
        channels = values.permute(0, 1, 5, 7, 4, 6, 8, 2, 3)
        values = channels.flatten(0, 3).flatten(1, 3)
    elif header.layout == KRSC:
        k, cg, r, s = header.weight_shape()
        values = values[:, : r * s * cg].view(k, r, s, cg).permute(0, 3, 1, 2)
    return values.contiguous()


def join_packed(packed: Sequence[Tensor]) -> Tensor:
    """Packed weights one after the other, for ``bottleneck_chain``.

    Args:
        packed: 1-D uint8 tensors, in any layout.

    Returns:
        1-D uint8 tensor, in which each begins at a multiple of 64 bytes; zeros between them.

    Raises:
        ValueError: no tensor, or one that has no header.
    """
    if not packed:
        raise ValueError("join_packed: packed must have at least one element, got none")
    for tensor in packed:
        if tensor.dim() != 1 or tensor.dtype != torch.uint8 or tensor.numel() < HEADER_BYTES:
            raise ValueError(
                "join_packed: packed must be what pack_conv_weight returned (1-D uint8), got "
                f"{tensor.dtype} of shape {list(tensor.shape)}"
            )
    return torch.cat([F.pad(t, (0, joined_bytes(t.numel()) - t.numel())) for t in packed])
