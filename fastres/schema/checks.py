"""Argument checks and output shapes, shared by the reference and the fake kernels.

The same rules as csrc/checks.h: what these accept the kernels accept, and the other way round.
Works on symbolic sizes, and reads no data unless told to read the packed weights' headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .packed_weight import WINOGRAD, read_header, suits_bfloat16

ACTIVATIONS = ("none", "relu", "relu6", "silu", "leaky_relu")
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

Shape = tuple[int, ...]


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


# Sums and products of larger strides, paddings and the like leave the kernels' 64 bits.
_LARGEST_ARGUMENT = 2**31 - 1


def _require_ints(op: str, name: str, values: Sequence[int], count: int, minimum: int) -> None:
    if len(values) != count or any(value < minimum for value in values):
        kind = "positive" if minimum == 1 else "not negative"
        raise ValueError(f"{op}: {name} must be {count} ints, all {kind}, got {list(values)}")
    if max(values) > _LARGEST_ARGUMENT:
        raise ValueError(f"{op}: {name} must be at most {_LARGEST_ARGUMENT}, got {list(values)}")


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


def require_input(op: str, x: Tensor, groups: int) -> None:
    """Raises ValueError where ``x`` is no batch of images, or ``groups`` is not positive."""
    if x.dim() != 4:
        raise ValueError(f"{op}: x must have 4 dimensions [N, C, H, W], got shape {_shape(x)}")
    if x.dtype not in FLOAT_DTYPES:
        raise ValueError(f"{op}: x must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if groups < 1:
        raise ValueError(f"{op}: groups must be positive, got {groups}")


def require_groups(op: str, what: str, channels: int, groups: int) -> None:
    """Raises ValueError where ``groups`` does not divide the channels of ``what``."""
    if channels % groups != 0:
        raise ValueError(f"{op}: groups={groups} does not divide the {channels} {what} channels")


class _Constants(NamedTuple):
    """A convolution's packed weight and shift, by the name that the arguments have."""

    op: str
    suffix: str
    packed: Tensor
    shift: Tensor

    def out_channels(
        self, x: Tensor, channels: int, kernel_size: Sequence[int], groups: int, read_packed: bool
    ) -> int:
        """Checks both for an input of so many channels on the device of x, and returns K."""
        op, name = self.op, f"packed{self.suffix}"
        require_groups(op, "input", channels, groups)
        if self.packed.dim() != 1 or self.packed.dtype != torch.uint8:
            raise ValueError(
                f"{op}: {name} must be a 1-D uint8 tensor made by pack_conv_weight, "
                f"got {self.packed.dtype} of shape {_shape(self.packed)}"
            )
        _require_same_device(op, x, **{name: self.packed, f"shift{self.suffix}": self.shift})
        self._require_shift(x)
        if not read_packed:
            require_groups(op, "output", self.shift.shape[0], groups)
            return self.shift.shape[0]
        header = read_header(self.packed, f"{op}: {name}")
        expected = [channels // groups, *kernel_size]
        if list(header.weight_shape()[1:]) != expected or header.groups != groups:
            raise ValueError(
                f"{op}: {name} is of another convolution: it holds a weight "
                f"{list(header.weight_shape())} with groups={header.groups}, expected "
                f"[K, {', '.join(map(str, expected))}] with groups={groups}"
            )
        if header.dtype == torch.float64 and x.dtype != torch.float64:
            raise ValueError(f"{op}: {name} holds a float64 weight, expected float32 for this x")
        if self.shift.shape[0] != header.out_channels:
            raise ValueError(
                f"{op}: shift{self.suffix} must have shape [{header.out_channels}], "
                f"got {_shape(self.shift)}"
            )
        return header.out_channels

    def require_unit_step(self, stride: Sequence[int], dilation: Sequence[int]) -> None:
        """Checks that a weight of Winograd's transforms is used with stride and dilation 1."""
        if read_header(self.packed).layout != WINOGRAD or {*stride, *dilation} == {1}:
            return
        raise ValueError(
            f"{self.op}: packed{self.suffix} was packed with algorithm='winograd', which needs "
            f"stride and dilation 1, got stride {tuple(stride)} and dilation {tuple(dilation)}"
        )

    def _require_shift(self, x: Tensor) -> None:
        op, name, shift = self.op, f"shift{self.suffix}", self.shift
        if shift.dim() != 1:
            raise ValueError(f"{op}: {name} must have shape [K], got {_shape(shift)}")
        expected = torch.float64 if x.dtype == torch.float64 else torch.float32
        if shift.dtype != expected:
            raise ValueError(
                f"{op}: {name} must be {expected} when x is {x.dtype}, got {shift.dtype}"
            )


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
                f"{op}: x is too small: it has {name}={size[axis]}, with padding {padded}, and the "
                f"dilated kernel covers {extent}"
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
    *,
    read_packed: bool,
    op: str = "conv_bn_act",
) -> Shape:
    """Checks the arguments of ``conv_bn_act`` and returns its output's shape [N, K, OH, OW].

    With ``read_packed`` it checks the packed weight's header too, which a fake tensor has not.

    Raises:
        ValueError: names the argument, what it is and what it has to be.
    """
    require_input(op, x, groups)
    _require_ints(op, "kernel_size", kernel_size, 2, 1)
    _require_ints(op, "stride", stride, 2, 1)
    _require_ints(op, "padding", padding, 4, 0)
    _require_ints(op, "dilation", dilation, 2, 1)
    require_activation(op, act)
    constants = _Constants(op, "", packed, shift)
    channels = constants.out_channels(x, x.shape[1], kernel_size, groups, read_packed)
    if read_packed:
        constants.require_unit_step(stride, dilation)
    height, width = conv_output_size(op, x.shape[2:], kernel_size, stride, padding, dilation)
    shape = (x.shape[0], channels, height, width)
    if residual is not None:
        _require_residual(op, x, residual, shape)
    return shape


def live_conv_bn_act_shape(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    algorithm: str,
    act: str,
    *,
    op: str = "live_conv_bn_act",
) -> Shape:
    """Checks the arguments of ``live_conv_bn_act`` and returns its output's shape [N, K, OH, OW].

    Raises:
        ValueError: names the argument, what it is and what it has to be.
    """
    pack_conv_weight_check(weight, scale, groups, algorithm, op)
    require_input(op, x, groups)
    _require_same_device(op, x, weight=weight, shift=shift)
    channels, group_channels, *kernel_size = weight.shape
    if x.shape[1] != group_channels * groups:
        raise ValueError(
            f"{op}: weight must have {x.shape[1]} / {groups} input channels a group, those of x "
            f"over groups, got shape {_shape(weight)}"
        )
    if algorithm == "winograd" and {*stride, *dilation} != {1}:
        raise ValueError(
            f"{op}: algorithm 'winograd' needs stride and dilation 1, got stride {tuple(stride)} "
            f"and dilation {tuple(dilation)}"
        )
    if shift.shape != (channels,):
        raise ValueError(f"{op}: shift must have shape [{channels}], got {_shape(shift)}")
    packed = weight.new_empty(0, dtype=torch.uint8)
    return conv_bn_act_shape(
        x, packed, shift, residual, kernel_size, stride, padding, dilation, groups, act,
        read_packed=False, op=op,
    )  # fmt: skip


def _require_residual(op: str, x: Tensor, residual: Tensor, shape: Shape) -> None:
    _require_same_device(op, x, residual=residual)
    if residual.dtype != x.dtype:
        raise ValueError(
            f"{op}: residual must have the dtype of x, {x.dtype}, got {residual.dtype}"
        )
    if residual.dim() != 4 or any(a != b for a, b in zip(residual.shape, shape, strict=True)):
        raise ValueError(
            f"{op}: residual must have the output's shape {list(shape)}, got {_shape(residual)}"
        )


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
    *,
    read_packed: bool,
) -> Shape:
    """Checks the arguments of ``grouped_bottleneck``, returns its output's shape [N, K3, OH, OW].

    With ``read_packed`` it checks the packed weights' headers too, which fake tensors have not.

    Raises:
        ValueError: names the argument, what it is and what it has to be.
    """
    op, point = "grouped_bottleneck", (1, 1)
    require_input(op, x, groups)
    _require_ints(op, "stride", stride, 2, 1)
    _require_ints(op, "dilation", dilation, 2, 1)
    require_activation(op, act)
    channels = x.shape[1]
    first = _Constants(op, "1", packed1, shift1)
    inner = first.out_channels(x, channels, point, 1, read_packed)
    second = _Constants(op, "2", packed2, shift2)
    inner = second.out_channels(x, inner, (3, 3), groups, read_packed)
    if read_packed:
        second.require_unit_step(stride, dilation)
    third = _Constants(op, "3", packed3, shift3)
    out_channels = third.out_channels(x, inner, point, 1, read_packed)
    padding = (dilation[0], dilation[0], dilation[1], dilation[1])
    height, width = conv_output_size(op, x.shape[2:], (3, 3), stride, padding, dilation)
    shape = (x.shape[0], out_channels, height, width)
    if (packed_down is None) != (shift_down is None):
        raise ValueError(f"{op}: packed_down and shift_down must be given together")
    if packed_down is not None and shift_down is not None:
        down = _Constants(op, "_down", packed_down, shift_down)
        channels = down.out_channels(x, channels, point, 1, read_packed)
        if channels != out_channels:
            raise ValueError(
                f"{op}: packed_down must have the {out_channels} output channels of packed3, "
                f"got {channels}"
            )
    elif any(a != b for a, b in zip(x.shape, shape, strict=True)):
        raise ValueError(
            f"{op}: without packed_down the output {list(shape)} must have x's shape {_shape(x)}"
        )
    return shape


def live_bottleneck_shape(
    x: Tensor,
    weight1: Tensor,
    scale1: Tensor | None,
    shift1: Tensor,
    weight2: Tensor,
    scale2: Tensor | None,
    shift2: Tensor,
    weight3: Tensor,
    scale3: Tensor | None,
    shift3: Tensor,
    weight_down: Tensor | None,
    scale_down: Tensor | None,
    shift_down: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    algorithm: str,
    act: str,
) -> Shape:
    """Checks the arguments of ``live_bottleneck``, returns its output's shape [N, K3, OH, OW].

    Raises:
        ValueError: names the convolution, its argument, what it is and what it has to be.
    """
    op, one, none = "live_bottleneck", (1, 1), (0, 0, 0, 0)
    _require_ints(op, "stride", stride, 2, 1)
    _require_ints(op, "dilation", dilation, 2, 1)
    (vertical, horizontal) = dilation
    padding = (vertical, vertical, horizontal, horizontal)
    for name, weight, size in (
        ("weight1", weight1, one),
        ("weight2", weight2, (3, 3)),
        ("weight3", weight3, one),
        ("weight_down", weight_down, one),
    ):
        if weight is not None and (weight.dim() != 4 or tuple(weight.shape[2:]) != size):
            raise ValueError(
                f"{op}: {name} must be 4-D with a {size[0]}x{size[1]} kernel, got {_shape(weight)}"
            )

    def out(conv: str, x: Tensor, *rest: Any) -> Tensor:
        return x.new_empty(live_conv_bn_act_shape(x, *rest, op=f"{op}: {conv}"))

    shortcut = x
    if (weight_down is None) != (shift_down is None):
        raise ValueError(f"{op}: weight_down and shift_down must be given together")
    if weight_down is not None and shift_down is not None:
        shortcut = out(
            *("shortcut", x, weight_down, scale_down, shift_down, None),
            *(stride, none, one, 1, "direct", act),
        )
    h = out("conv1", x, weight1, scale1, shift1, None, one, none, one, 1, "direct", act)
    h = out(
        *("conv2", h, weight2, scale2, shift2, None),
        *(stride, padding, dilation, groups, algorithm, act),
    )
    h = out("conv3", h, weight3, scale3, shift3, shortcut, one, none, one, 1, "direct", act)
    n, c, height, width = h.shape
    return n, c, height, width


def avg_pool_linear_shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[int, int]:
    """Checks the arguments of ``avg_pool_linear`` and returns its output's shape [N, K].

    Raises:
        ValueError: names the argument, what it is and what it has to be.
    """
    op = "avg_pool_linear"
    require_input(op, x, 1)
    n, c, h, w = x.shape
    if h == 0 or w == 0:
        raise ValueError(f"{op}: x must have pixels, got shape {_shape(x)}")
    if weight.dim() != 2 or weight.shape[1] != c:
        raise ValueError(f"{op}: weight must have shape [K, {c}], got {_shape(weight)}")
    outputs = weight.shape[0]
    if bias is not None and tuple(bias.shape) != (outputs,):
        raise ValueError(f"{op}: bias must have shape [{outputs}], got {_shape(bias)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        _require_same_device(op, x, **{name: tensor})
        if tensor.dtype != x.dtype:
            raise ValueError(f"{op}: {name} must have x's dtype {x.dtype}, got {tensor.dtype}")
    return n, outputs


def max_pool_shape(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Shape:
    """Checks the arguments of ``max_pool`` and returns its output's shape [N, C, OH, OW].

    Raises:
        ValueError: names the argument, what it is and what it has to be.
    """
    op = "max_pool"
    require_input(op, x, 1)
    n, c, h, w = x.shape
    return _pooled_shape(op, (n, c, h, w), kernel_size, stride, padding, _MAX_POOL)


def conv_max_pool_shape(
    op: str,
    convolved: Shape,
    pool_size: Sequence[int],
    pool_stride: Sequence[int],
    pool_padding: Sequence[int],
) -> Shape:
    """Checks how ``conv_max_pool`` is to pool and returns its output's shape [N, K, OH, OW].

    Args:
        op: its name, or the live one's.
        convolved: of the convolution's output.
        pool_size: of a window.
        pool_stride: from one window to the next.
        pool_padding: each at most half of the window.

    Raises:
        ValueError: names the argument, what it is and what it has to be.
    """
    return _pooled_shape(op, convolved, pool_size, pool_stride, pool_padding, _CONV_MAX_POOL)


def max_pool_places_shape(
    shape: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Shape:
    """Checks the window of ``max_pool_places`` and returns its output's shape [N, C, OH, OW].

    Args:
        shape: of its input.
        kernel_size: at most ``MOST_PLACES``.
        stride: from one window to the next.
        padding: each at most half of the window.

    Raises:
        ValueError: names the argument, what it is and what it has to be.
    """
    op = "max_pool_places"
    out = _pooled_shape(op, tuple(shape), kernel_size, stride, padding, _MAX_POOL)
    if kernel_size[0] * kernel_size[1] > MOST_PLACES:
        raise ValueError(
            f"{op}: kernel_size must have at most {MOST_PLACES} places, got {list(kernel_size)}"
        )
    return out


#: Of a window, that a byte tells apart.
MOST_PLACES = 256

_MAX_POOL = ("x", "kernel_size", "stride", "padding")
_CONV_MAX_POOL = ("the convolution's output", "pool_size", "pool_stride", "pool_padding")


def _pooled_shape(
    op: str,
    shape: Shape,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    names: tuple[str, str, str, str],
) -> Shape:
    n, c, height, width = shape
    what, size_name, stride_name, padding_name = names
    _require_ints(op, size_name, size, 2, 1)
    _require_ints(op, stride_name, stride, 2, 1)
    if len(padding) != 2 or any(p < 0 or 2 * p > k for p, k in zip(padding, size, strict=True)):
        raise ValueError(
            f"{op}: {padding_name} must be 2 ints from 0 to half of {size_name}, "
            f"got {list(padding)}"
        )
    padded = [height + 2 * padding[0], width + 2 * padding[1]]
    if any(have < window for have, window in zip(padded, size, strict=True)):
        raise ValueError(f"{op}: {what} must be as large as {size_name}, got {height} x {width}")
    oh, ow = ((n - k) // s + 1 for n, k, s in zip(padded, size, stride, strict=True))
    return n, c, oh, ow


def _require_suits_bfloat16(op: str, weight: Tensor, groups: int) -> None:
    if not suits_bfloat16(tuple(weight.shape), groups):
        raise ValueError(
            f"{op}: algorithm 'bfloat16' needs multiples of 32 channels in each group, got shape "
            f"{_shape(weight)} with {groups} groups"
        )


def require_algorithm(op: str, weight: Tensor, groups: int, algorithm: str) -> None:
    """Checks by which algorithm a weight is to be convolved.

    Raises:
        ValueError: names the argument, what it is and what it has to be.
    """
    if algorithm not in ("direct", "winograd"):
        raise ValueError(f"{op}: algorithm must be 'direct' or 'winograd', got {algorithm!r}")
    if algorithm == "winograd" and (tuple(weight.shape[2:]) != (3, 3) or groups != 1):
        raise ValueError(
            f"{op}: algorithm 'winograd' needs a dense 3x3 weight, got shape {_shape(weight)} "
            f"with {groups} groups"
        )


def pack_conv_weight_check(
    weight: Tensor,
    scale: Tensor | None,
    groups: int,
    algorithm: str,
    op: str = "pack_conv_weight",
) -> None:
    """Checks the arguments of ``pack_conv_weight``, or of an operator that packs.

    Raises:
        ValueError: names the argument, what it is and what it has to be.
    """
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
    require_groups(op, "output", weight.shape[0], groups)
    if algorithm == "bfloat16" and op == "pack_conv_weight":
        _require_suits_bfloat16(op, weight, groups)
    else:
        require_algorithm(op, weight, groups, algorithm)
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
