"""What the kernels cover; the reference computes the rest."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])

_LIMIT = 2**31  # pixel numbers, and offsets within an image, are 32-bit


def _covers(tensor: Tensor) -> bool:
    if tensor.dtype == torch.float64:
        return False
    if tensor.dim() != 4:
        return tensor.numel() < _LIMIT
    n, c, h, w = tensor.shape
    span = sum(step * (size - 1) for step, size in zip(tensor.stride()[1:], (c, h, w), strict=True))
    return n * h * w < _LIMIT and span < _LIMIT


def otherwise(reference: Callable[..., Any]) -> Callable[[Function], Function]:
    """Decorates an operator: ``reference`` runs for float64 and for images of 2**31 elements."""

    def decorate(operator: Function) -> Function:
        @wraps(operator)
        def run(*arguments: Any) -> Any:
            covered = all(_covers(a) for a in arguments if isinstance(a, Tensor))
            return (operator if covered else reference)(*arguments)

        return run  # type: ignore[return-value]

    return decorate
