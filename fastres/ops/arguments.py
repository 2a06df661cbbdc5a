"""Normalises and checks what users pass to the operators."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from ..schema import checks
from ..schema.packed_weight import read_header

IntOrPair = int | Sequence[int]


def pair(name: str, value: IntOrPair) -> tuple[int, int]:
    """The pair that an int or two stand for; raises TypeError for anything else."""
    try:
        if isinstance(value, (tuple, list)):
            first, second = value
            return operator.index(first), operator.index(second)
        single = operator.index(value)  # type: ignore[arg-type]
        return single, single
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}") from None


def resolve_padding(
    padding: str | IntOrPair, kernel_size: IntOrPair, dilation: IntOrPair = 1
) -> tuple[int, int, int, int]:
    """Padding as (top, bottom, left, right).

    Args:
        padding: an int, (vertical, horizontal), (top, bottom, left, right), "valid", or "same",
            which splits as PyTorch does: an odd row or column goes to the bottom or right.
        kernel_size: an int or (R, S).
        dilation: an int or (vertical, horizontal).

    Raises:
        ValueError: an unknown string.
        TypeError: neither a string, an int, nor 2 or 4 ints.
    """
    if padding == "same":
        (r, s), (dh, dw) = pair("kernel_size", kernel_size), pair("dilation", dilation)
        vertical, horizontal = dh * (r - 1), dw * (s - 1)
        top, left = vertical // 2, horizontal // 2
        return top, vertical - top, left, horizontal - left
    if padding == "valid":
        return 0, 0, 0, 0
    if isinstance(padding, str):
        raise ValueError(f"padding must be ints, 'same' or 'valid', got {padding!r}")
    if isinstance(padding, (tuple, list)) and len(padding) == 4:
        try:
            top, bottom, left, right = map(operator.index, padding)
        except TypeError:
            raise TypeError(f"padding must be ints, got {padding!r}") from None
        return top, bottom, left, right
    vertical, horizontal = pair("padding", padding)
    return vertical, vertical, horizontal, horizontal


def conv_geometry(
    op: str,
    kernel_size: IntOrPair,
    stride: IntOrPair,
    padding: str | IntOrPair,
    dilation: IntOrPair,
) -> tuple[tuple[int, int], tuple[int, int, int, int], tuple[int, int]]:
    """A convolution's stride, padding and dilation as the operators take them.

    Raises:
        ValueError: an unknown string, or padding "same" with a stride; names the operator.
        TypeError: neither a string nor ints, as many as they have to be.
    """
    steps = pair("stride", stride)
    if padding == "same" and steps != (1, 1):
        raise ValueError(f"{op}: padding 'same' needs stride 1, got {steps}")
    return steps, resolve_padding(padding, kernel_size, dilation), pair("dilation", dilation)


def pool_window(
    size: IntOrPair, stride: IntOrPair | None, padding: IntOrPair, prefix: str = ""
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """A pooling's window, stride (None for the window) and padding as the operators take them."""
    window = pair(f"{prefix}size", size)
    step = window if stride is None else pair(f"{prefix}stride", stride)
    return window, step, pair(f"{prefix}padding", padding)


def check_tensor(
    op: str, name: str, value: object, dtypes: Sequence[torch.dtype], device: torch.device | None
) -> None:
    """Raises TypeError for a wrong type or dtype, ValueError for a wrong device (None: any)."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        expected = " or ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{op}: {name} must be {expected}, got {value.dtype}")
    if device is not None and value.device != device:
        raise ValueError(
            f"{op}: {name} must be on the same device as x, got {value.device}, expected {device}"
        )


FLOAT32, FLOAT64, BYTES = (torch.float32,), (torch.float64,), (torch.uint8,)


def check_input(op: str, x: Tensor) -> tuple[torch.device, Sequence[torch.dtype]]:
    """Checks x; returns its device and the dtypes that its shifts may have."""
    check_tensor(op, "x", x, checks.FLOAT_DTYPES, None)
    return x.device, (FLOAT64 if x.dtype == torch.float64 else FLOAT32)


def no_shift(op: str, packed: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros for the output channels of a packed weight."""
    channels = read_header(packed, f"{op}: packed").out_channels
    return torch.zeros(channels, dtype=dtype, device=packed.device)
