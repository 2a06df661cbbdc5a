"""Autocast for the operators."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

_registrations = torch.library.Library("fastres", "IMPL")  # the kernels live as long as it does


def register_autocast(op: str, positions: Sequence[int]) -> None:
    """Under autocast, casts the arguments at these positions to its dtype, as conv2d does.

    torch.library.register_autocast would round the shifts too.
    """
    overload = getattr(torch.ops.fastres, op).default

    def kernel(device: str, keys: torch._C.DispatchKeySet, *args: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device)
        cast = list(args)
        for position in positions:
            tensor = cast[position]
            if tensor is not None and tensor.dtype != torch.float64:
                cast[position] = tensor.to(dtype)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return overload(*cast)

    for name in ("CPU", "CUDA"):
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{name}"))
        _registrations.impl(op, partial(kernel, name.lower(), keys), f"Autocast{name}")
