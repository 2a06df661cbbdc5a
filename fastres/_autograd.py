"""Autograd for the operators: backward, and an error instead of forward mode's silent zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._library.autograd import Info, make_autograd_impl
from torch.autograd import forward_ad

_registrations = torch.library.Library("fastres", "IMPL")  # the kernels live as long as it does


def register_autograd(
    op: str, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> None:
    """``torch.library.register_autograd``, but forward-mode differentiation raises.

    PyTorch's own drops the tangents of an operator's inputs without a word, and a derivative
    without a tangent reads as zero.
    """
    kernel = make_autograd_impl(
        getattr(torch.ops.fastres, op).default, Info(backward, setup_context)
    )

    def checked(keys: torch._C.DispatchKeySet, *args: Any) -> Any:
        refuse_tangents(op, args)
        return kernel(keys, *args)

    _registrations.impl(op, checked, "Autograd", with_keyset=True)


def refuse_tangents(op: str, values: Iterable[Any]) -> None:
    """Raises NotImplementedError where one is a tensor with a tangent."""
    if forward_ad._current_level < 0:
        return
    for value in values:
        if isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None:
            raise NotImplementedError(
                f"{op}: an input has a tangent, but forward-mode differentiation (jvp, dual "
                "tensors) has no kernel; use backward, or the model that freeze was given"
            )


def refuse_gradients(op: str, **tensors: Tensor | None) -> None:
    """Raises ValueError where one of an operator's inputs, by name, would need a gradient."""
    refuse_tangents(op, tensors.values())
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad:
            raise ValueError(
                f"{op}: {name} requires grad, but this operator has no gradients; pass "
                f"{name}.detach(), or use conv_stats"
            )
