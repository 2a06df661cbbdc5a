"""The operators in plain PyTorch: the oracle of every test and the fallback of every backend.

The functions take exactly the arguments of the schemas in csrc/ops.cpp. Arithmetic is float64 for
float64 inputs and float32 for float32, bfloat16 and float16, rounded to the input's dtype once, at
the end. Everything is differentiable except the packed weights' header.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _checks

# Layouts of a packed weight's payload; csrc/packed_weight.h describes them.
PLAIN, IGEMM, LANES = 0, 1, 2

_MAGIC = 0x53525446  # "FTRS"
_VERSION = 1
_HEADER_BYTES = 64
_HEADER = struct.Struct("<9i28x")
_PAYLOAD_DTYPES = (torch.float32, torch.float64)
_LANES = 16  # output channels in one block of the packed layouts


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

    def payload_shape(self) -> tuple[int, ...]:
        """The payload's shape in its layout."""
        k, cg, r, s = self.weight_shape()
        if self.layout == IGEMM:
            return (self.groups, -(-(k // self.groups) // _LANES), r, s, cg, _LANES)
        if self.layout == LANES:
            return (-(-k // _LANES), r, s, cg, _LANES)
        return (k, cg, r, s)


def uses_lanes_layout(group_out: int, group_in: int, groups: int) -> bool:
    """Whether kernels want LANES rather than IGEMM: groups too narrow to fill a block alone."""
    return groups > 1 and group_out == group_in and group_in in (1, 2, 4, 8)


def packed_bytes(weight_shape: Sequence[int], groups: int, layout: int, dtype: torch.dtype) -> int:
    """Size of the packed tensor of a weight of this shape [K, C/groups, R, S]."""
    k, cg, r, s = weight_shape
    payload = 1
    for size in PackedHeader(layout, dtype, k, cg, r, s, groups).payload_shape():
        payload *= size
    return _HEADER_BYTES + payload * dtype.itemsize


def pack_conv_weight(
    weight: Tensor, scale: Tensor | None, groups: int, layout: int = PLAIN
) -> Tensor:
    """Packs ``weight * scale[:, None, None, None]`` in the given layout.

    Args:
        weight: [K, C/groups, R, S], any float dtype.
        scale: [K], float32 (float64 for a float64 weight), or None for 1.
        groups: the convolution's groups.
        layout: PLAIN, IGEMM or LANES.

    Returns:
        1-D uint8 tensor: a 64-byte header, then float32 values (float64 for a float64 weight).

    Raises:
        ValueError: the arguments do not fit together.
    """
    _checks.pack_conv_weight_check(weight, scale, groups)
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    scaled = weight.detach().to(dtype)
    if scale is not None:
        scaled = scaled * scale.detach()[:, None, None, None]
    k, cg, r, s = scaled.shape
    if layout == IGEMM:
        padded = F.pad(
            scaled.reshape(groups, k // groups, cg, r, s),
            (0, 0, 0, 0, 0, 0, 0, -(k // groups) % _LANES),
        )
        scaled = padded.unflatten(1, (-1, _LANES)).permute(0, 1, 4, 5, 3, 2)
    elif layout == LANES:
        padded = F.pad(scaled, (0, 0, 0, 0, 0, 0, 0, -k % _LANES))
        scaled = padded.unflatten(0, (-1, _LANES)).permute(0, 3, 4, 2, 1)
    elif layout != PLAIN:
        raise ValueError(f"pack_conv_weight: layout must be 0, 1 or 2, got {layout}")
    header = _HEADER.pack(
        _MAGIC, _VERSION, layout, _PAYLOAD_DTYPES.index(dtype), k, cg, r, s, groups
    )
    head = torch.frombuffer(bytearray(header), dtype=torch.uint8).to(weight.device)
    return torch.cat([head, scaled.contiguous().view(-1).view(torch.uint8)])


def read_header(packed: Tensor, name: str = "packed") -> PackedHeader:
    """The header of a packed weight.

    Raises:
        ValueError: ``packed`` (called ``name`` in the message) was not made by pack_conv_weight, by
            another version of it, or was cut.
    """
    if packed.dim() != 1 or packed.dtype != torch.uint8 or packed.shape[0] < _HEADER_BYTES:
        raise ValueError(
            f"{name} must be a 1-D uint8 tensor made by pack_conv_weight, got {packed.dtype} of "
            f"shape {list(packed.shape)}"
        )
    magic, version, layout, dtype, k, cg, r, s, groups = _HEADER.unpack(
        bytes(packed[:_HEADER_BYTES].tolist())
    )
    if magic != _MAGIC:
        raise ValueError(f"{name} was not made by pack_conv_weight: it has no valid header")
    if version != _VERSION:
        raise ValueError(f"{name} has packing version {version}, expected {_VERSION}: pack again")
    sizes = (k, cg, r, s, groups)
    if layout not in (PLAIN, IGEMM, LANES) or dtype not in (0, 1) or min(sizes) < 1 or k % groups:
        raise ValueError(f"{name} has a corrupt header")
    header = PackedHeader(layout, _PAYLOAD_DTYPES[dtype], k, cg, r, s, groups)
    expected = packed_bytes(header.weight_shape(), groups, layout, header.dtype)
    if packed.shape[0] != expected:
        raise ValueError(f"{name} has {packed.shape[0]} bytes, its header says {expected}")
    return header


def unpack_conv_weight(packed: Tensor) -> Tensor:
    """The weight in a packed tensor of any layout, as [K, C/groups, R, S].

    Raises:
        ValueError: ``packed`` was not made by pack_conv_weight.
    """
    return _unpack(packed, read_header(packed))


def _unpack(packed: Tensor, header: PackedHeader) -> Tensor:
    # clone: a slice of a byte tensor may start where a float must not.
    payload = packed[_HEADER_BYTES:].clone(memory_format=torch.contiguous_format)
    values = payload.view(header.dtype).view(header.payload_shape())
    if header.layout == IGEMM:
        by_group = values.permute(0, 1, 5, 4, 2, 3).flatten(1, 2)
        values = by_group[:, : header.out_channels // header.groups].flatten(0, 1)
    elif header.layout == LANES:
        values = values.permute(0, 4, 3, 1, 2).flatten(0, 1)[: header.out_channels]
    return values.contiguous()


def unpack_for(
    packed: Tensor, shape: Sequence[int], groups: int, op: str, name: str = "packed"
) -> Tensor:
    """The weight in ``packed``, which has to be of shape [K, C/groups, R, S] with these groups.

    Raises:
        ValueError: it is the weight of another convolution; says of which, and what was expected.
    """
    header = read_header(packed, f"{op}: {name}")
    if header.weight_shape() != tuple(shape) or header.groups != groups:
        raise ValueError(
            f"{op}: {name} is of a convolution with weight {list(header.weight_shape())} and "
            f"groups={header.groups}, expected weight {list(shape)} and groups={groups}"
        )
    return _unpack(packed, header)


def apply_act(x: Tensor, act: str, act_slope: float = 0.01) -> Tensor:
    """The activation called ``act``; ``act_slope`` is leaky_relu's negative slope.

    Raises:
        ValueError: there is no such activation.
    """
    if act == "none":
        return x
    if act == "relu":
        return F.relu(x)
    if act == "relu6":
        return F.relu6(x)
    if act == "silu":
        return F.silu(x)
    if act == "leaky_relu":
        return F.leaky_relu(x, act_slope)
    _checks.require_activation("apply_act", act)
    raise AssertionError("unreachable: every known activation returned above")


def channels_last(x: Tensor) -> Tensor:
    """``x`` with dense channels_last strides, also where a size of 0 or 1 leaves them open."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(-1).view(n, h, w, c).permute(0, 3, 1, 2)


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _conv(
    x: Tensor,
    packed: Tensor,
    shift: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    op: str,
    name: str = "packed",
) -> Tensor:
    shape = (shift.shape[0], x.shape[1] // groups, *kernel_size)
    weight = unpack_for(packed, shape, groups, op, name)
    if weight.dtype == torch.float64 and x.dtype != torch.float64:
        raise ValueError(f"{op}: {name} holds a float64 weight, expected float32 for this x")
    top, bottom, left, right = padding
    if top != bottom or left != right:
        x = F.pad(x, (left, right, top, bottom))
        top = left = 0
    y = F.conv2d(x, weight.to(x.dtype), None, stride, (top, left), dilation, groups)
    return y + shift[:, None, None]


def conv_bn_act(
    x: Tensor,
    packed: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    act: str,
    act_slope: float,
) -> Tensor:
    """``act(conv(x) + shift + residual)``.

    Args:
        x: [N, C, H, W], any float dtype and strides.
        packed: of pack_conv_weight, any layout.
        shift: [K], float32 (float64 for a float64 x).
        residual: shape of the output, dtype of x, any strides; or None.
        kernel_size: (R, S).
        stride: (vertical, horizontal).
        padding: (top, bottom, left, right).
        dilation: (vertical, horizontal).
        groups: divides C and K.
        act: none, relu, relu6, silu or leaky_relu.
        act_slope: leaky_relu's negative slope.

    Returns:
        [N, K, OH, OW] in the dtype of x, dense channels_last strides.

    Raises:
        ValueError: the arguments do not fit together.
    """
    _checks.conv_bn_act_shape(
        x, packed, shift, residual, kernel_size, stride, padding, dilation, groups, act
    )
    y = _conv(
        x.to(compute_dtype(x)),
        packed,
        shift,
        kernel_size,
        stride,
        padding,
        dilation,
        groups,
        "conv_bn_act",
    )
    if residual is not None:
        y = y + residual
    return channels_last(apply_act(y, act, act_slope).to(x.dtype))


def grouped_bottleneck(
    x: Tensor,
    packed1: Tensor,
    shift1: Tensor,
    packed2: Tensor,
    shift2: Tensor,
    packed3: Tensor,
    shift3: Tensor,
    packed_down: Tensor | None,
    shift_down: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    act: str,
) -> Tensor:
    """``act(conv3(act(conv2(act(conv1(x))))) + shortcut)``: He et al., arXiv:1512.03385, fig. 5.

    conv1 and conv3 are 1x1; conv2 is 3x3 with ``stride``, ``dilation``, padding=dilation and
    ``groups``. The shortcut is x, or a 1x1 convolution of x with ``stride``. The two inner
    activations stay in the compute dtype.

    Args:
        x: [N, C, H, W], any float dtype and strides.
        packed1: conv1's weight [K1, C, 1, 1], packed in any layout.
        shift1: [K1], float32 (float64 for a float64 x).
        packed2: conv2's weight [K2, K1/groups, 3, 3].
        shift2: [K2].
        packed3: conv3's weight [K3, K2, 1, 1].
        shift3: [K3].
        packed_down: the shortcut's weight [K3, C, 1, 1], or None for x itself.
        shift_down: [K3], with ``packed_down``.
        stride: (vertical, horizontal).
        dilation: (vertical, horizontal).
        groups: of conv2.
        act: none, relu, relu6, silu or leaky_relu (with slope 0.01).

    Returns:
        [N, K3, OH, OW] in the dtype of x, dense channels_last strides.

    Raises:
        ValueError: the arguments do not fit together.
    """
    _checks.grouped_bottleneck_shape(
        x, packed1, shift1, packed2, shift2, packed3, shift3, packed_down, shift_down,
        stride, dilation, groups, act,
    )  # fmt: skip
    op, one, none = "grouped_bottleneck", (1, 1), (0, 0, 0, 0)
    padding = (dilation[0], dilation[0], dilation[1], dilation[1])
    wide = x.to(compute_dtype(x))
    h = apply_act(_conv(wide, packed1, shift1, one, one, none, one, 1, op, "packed1"), act)
    h = _conv(h, packed2, shift2, (3, 3), stride, padding, dilation, groups, op, "packed2")
    h = _conv(apply_act(h, act), packed3, shift3, one, one, none, one, 1, op, "packed3")
    if packed_down is not None and shift_down is not None:
        h = h + _conv(wide, packed_down, shift_down, one, stride, none, one, 1, op, "packed_down")
    else:
        h = h + wide
    return channels_last(apply_act(h, act).to(x.dtype))


def content_hash(tensors: Sequence[Tensor]) -> list[int]:
    """One hash per tensor, of its elements' bytes in row-major order.

    A change of any one element always changes the hash; other changes do so but for a chance of
    about 2**-64. Backends need not agree on the value.
    """
    return [_hash_bytes(tensor) for tensor in tensors]


def _hash_bytes(tensor: Tensor) -> int:
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    words = F.pad(data, (0, -data.numel() % 8)).view(torch.int64)
    # Spread each word's bits (a bijection), then sum with odd multipliers modulo 2**64: a change in
    # one word cannot cancel, and words that trade places get other multipliers.
    words = (words ^ ((words >> 32) & 0xFFFFFFFF)) * 0x2545F4914F6CDD1D
    words = words ^ ((words >> 29) & 0x7FFFFFFFF)
    index = torch.arange(words.numel(), device=words.device)
    return int((words * ((index * 0x1E3779B97F4A7C15) | 1)).sum()) ^ data.numel()
