"""Argument checks and output shapes, shared by the reference and the fake kernels.

The same rules as csrc/checks.h: what these accept the kernels accept, and the other way round.
Everything here works on symbolic sizes and reads no tensor's data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ACTIVATIONS = ("none", "relu", "relu6", "silu", "leaky_relu")
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

Shape = tuple[int, ...]


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _require_ints(op: str, name: str, values: Sequence[int], count: int, minimum: int) -> None:
    if len(values) != count or any(value < minimum for value in values):
        kind = "positive" if minimum == 1 else "non-negative"
        raise ValueError(f"{op}: {name} must be {count} {kind} ints, got {list(values)}")


def _require_same_device(op: str, x: Tensor, **others: Tensor | None) -> None:
    for name, other in others.items():
        if other is not None and other.device != x.device:
            raise ValueError(
                f"{op}: {name} must be on the same device as x, got {other.device}, "
                f"expected {x.device}"
            )


def require_activation(op: str, act: str) -> None:
    """Raises ValueError unless ``act`` is one of ACTIVATIONS."""
    if act not in ACTIVATIONS:
        raise ValueError(f"{op}: act must be one of {', '.join(ACTIVATIONS)}, got {act!r}")


def _require_input(op: str, x: Tensor, groups: int) -> None:
    if x.dim() != 4:
        raise ValueError(f"{op}: x must have 4 dimensions [N, C, H, W], got shape {_shape(x)}")
    if x.dtype not in FLOAT_DTYPES:
        raise ValueError(f"{op}: x must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if groups < 1:
        raise ValueError(f"{op}: groups must be positive, got {groups}")


def _require_shift(op: str, name: str, shift: Tensor, x: Tensor) -> None:
    if shift.dim() != 1:
        raise ValueError(f"{op}: {name} must have 1 dimension [K], got shape {_shape(shift)}")
    expected = torch.float64 if x.dtype == torch.float64 else torch.float32
    if shift.dtype != expected:
        raise ValueError(f"{op}: {name} must be {expected} when x is {x.dtype}, got {shift.dtype}")


def _require_packed(op: str, name: str, packed: Tensor) -> None:
    if packed.dim() != 1 or packed.dtype != torch.uint8:
        raise ValueError(
            f"{op}: {name} must be a 1-D uint8 tensor made by pack_conv_weight, "
            f"got {packed.dtype} of shape {_shape(packed)}"
        )


def _require_groups(op: str, what: str, channels: int, groups: int) -> None:
    if channels % groups != 0:
        raise ValueError(f"{op}: groups={groups} does not divide the {channels} {what} channels")


def conv_output_size(
    op: str,
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """[H, W] of a convolution's output; padding is (top, bottom, left, right).

    Raises:
        ValueError: the dilated kernel is larger than the padded input.
    """
    out = []
    for axis, name in enumerate("HW"):
        padded = size[axis] + padding[2 * axis] + padding[2 * axis + 1]
        extent = dilation[axis] * (kernel_size[axis] - 1) + 1
        if size[axis] < 1 or padded < extent:
            raise ValueError(
                f"{op}: x has {name}={size[axis]}, {padded} with padding, which is too small for "
                f"the dilated kernel's {extent}"
            )
        out.append((padded - extent) // stride[axis] + 1)
    return out[0], out[1]


def conv_bn_act_shape(
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
) -> Shape:
    """Checks the arguments of ``conv_bn_act`` and returns its output's shape [N, K, OH, OW].

    Raises:
        ValueError: names the argument, what it is and what it has to be.
    """
    op = "conv_bn_act"
    _require_input(op, x, groups)
    _require_packed(op, "packed", packed)
    _require_shift(op, "shift", shift, x)
    _require_same_device(op, x, packed=packed, shift=shift, residual=residual)
    _require_ints(op, "kernel_size", kernel_size, 2, 1)
    _require_ints(op, "stride", stride, 2, 1)
    _require_ints(op, "padding", padding, 4, 0)
    _require_ints(op, "dilation", dilation, 2, 1)
    require_activation(op, act)
    _require_groups(op, "input", x.shape[1], groups)
    _require_groups(op, "output", shift.shape[0], groups)
    height, width = conv_output_size(op, x.shape[2:], kernel_size, stride, padding, dilation)
    shape = (x.shape[0], shift.shape[0], height, width)
    if residual is not None:
        if residual.dtype != x.dtype:
            raise ValueError(
                f"{op}: residual must have the dtype of x, {x.dtype}, got {residual.dtype}"
            )
        if residual.dim() != 4 or any(a != b for a, b in zip(residual.shape, shape, strict=True)):
            raise ValueError(
                f"{op}: residual must have the output's shape {list(shape)}, got {_shape(residual)}"
            )
    return shape


def grouped_bottleneck_shape(
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
) -> Shape:
    """Checks the arguments of ``grouped_bottleneck``, returns its output's shape [N, K3, OH, OW].

    Raises:
        ValueError: names the argument, what it is and what it has to be.
    """
    op = "grouped_bottleneck"
    _require_input(op, x, groups)
    for name, packed in (
        ("packed1", packed1),
        ("packed2", packed2),
        ("packed3", packed3),
        ("packed_down", packed_down),
    ):
        if packed is not None:
            _require_packed(op, name, packed)
            _require_same_device(op, x, **{name: packed})
    for name, shift in (
        ("shift1", shift1),
        ("shift2", shift2),
        ("shift3", shift3),
        ("shift_down", shift_down),
    ):
        if shift is not None:
            _require_shift(op, name, shift, x)
            _require_same_device(op, x, **{name: shift})
    _require_ints(op, "stride", stride, 2, 1)
    _require_ints(op, "dilation", dilation, 2, 1)
    require_activation(op, act)
    _require_groups(op, "inner", shift1.shape[0], groups)
    _require_groups(op, "inner", shift2.shape[0], groups)
    _require_shortcut(op, x, shift3, packed_down, shift_down, stride)
    padding = (dilation[0], dilation[0], dilation[1], dilation[1])
    height, width = conv_output_size(op, x.shape[2:], (3, 3), stride, padding, dilation)
    return (x.shape[0], shift3.shape[0], height, width)


def _require_shortcut(
    op: str,
    x: Tensor,
    shift3: Tensor,
    packed_down: Tensor | None,
    shift_down: Tensor | None,
    stride: Sequence[int],
) -> None:
    if (packed_down is None) != (shift_down is None):
        given, missing = (
            ("shift_down", "packed_down") if packed_down is None else ("packed_down", "shift_down")
        )
        raise ValueError(f"{op}: {given} was given without {missing}, expected both or neither")
    channels = shift3.shape[0]
    if shift_down is not None:
        if shift_down.shape[0] != channels:
            raise ValueError(
                f"{op}: shift_down must have the {channels} channels of shift3, "
                f"got {shift_down.shape[0]}"
            )
    elif x.shape[1] != channels or tuple(stride) != (1, 1):
        raise ValueError(
            f"{op}: without packed_down, x is the shortcut and needs stride (1, 1) and the "
            f"{channels} channels of shift3, got stride {tuple(stride)} and {x.shape[1]} channels"
        )


def pack_conv_weight_check(weight: Tensor, scale: Tensor | None, groups: int) -> None:
    """Checks the arguments of ``pack_conv_weight``.

    Raises:
        ValueError: names the argument, what it is and what it has to be.
    """
    op = "pack_conv_weight"
    if weight.dim() != 4 or 0 in weight.shape:
        raise ValueError(
            f"{op}: weight must have 4 dimensions [K, C/groups, R, S], none of them 0, "
            f"got shape {_shape(weight)}"
        )
    if weight.dtype not in FLOAT_DTYPES:
        raise ValueError(
            f"{op}: weight must be float32, bfloat16, float16 or float64, got {weight.dtype}"
        )
    if groups < 1:
        raise ValueError(f"{op}: groups must be positive, got {groups}")
    _require_groups(op, "output", weight.shape[0], groups)
    if scale is None:
        return
    if scale.dim() != 1 or scale.shape[0] != weight.shape[0]:
        raise ValueError(
            f"{op}: scale must have shape [{weight.shape[0]}], one value an output channel, "
            f"got {_shape(scale)}"
        )
    expected = torch.float64 if weight.dtype == torch.float64 else torch.float32
    if scale.dtype != expected:
        raise ValueError(
            f"{op}: scale must be {expected} when weight is {weight.dtype}, got {scale.dtype}"
        )
    if scale.device != weight.device:
        raise ValueError(
            f"{op}: scale must be on the same device as weight, got {scale.device}, "
            f"expected {weight.device}"
        )
