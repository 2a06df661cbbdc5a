"""``max_pool_places`` and its gradient: max-pooling in training, with a byte an output of where."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..schema import checks
from .empty import empty_channels_last


@torch.library.register_fake("fastres::max_pool_places")
def _max_pool_places_fake(x: Tensor, *window: Sequence[int]) -> tuple[Tensor, Tensor]:
    shape = checks.max_pool_places_shape(x.shape, *window)
    y = empty_channels_last(x, shape)
    return y, torch.empty_like(y, dtype=torch.uint8)


@torch.library.register_fake("fastres::max_pool_places_backward")
def _max_pool_places_backward_fake(
    grad: Tensor, places: Tensor, size: Sequence[int], *window: Sequence[int]
) -> Tensor:
    shape = (*grad.shape[:2], *size)
    checks.max_pool_places_shape(shape, *window)
    return empty_channels_last(grad, shape)
