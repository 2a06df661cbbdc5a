"""Outputs of fake kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def empty_channels_last(like: Tensor, shape: Sequence[int]) -> Tensor:
    """An output [N, C, H, W] as kernels return it, with dtype and device of ``like``."""
    n, c, h, w = shape
    return like.new_empty_strided((n, c, h, w), (h * w * c, 1, w * c, c))


def wide_dtype(x: Tensor) -> torch.dtype:
    """What statistics, per-channel vectors and their gradients have beside ``x``."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def nothing(x: Tensor) -> Tensor:
    """An output that was not asked for."""
    return x.new_empty(0, dtype=wide_dtype(x))
