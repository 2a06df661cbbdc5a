"""Autograd for the operators: backward, and an error instead of forward mode's silent zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._library.autograd import Info, make_autograd_impl
from torch.autograd import forward_ad

from .. import reference

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


def differentiate_again(op: str) -> None:
    """Gradients of an operator that computes gradients: those of its reference."""
    function: Callable[..., tuple[Tensor, ...]] = getattr(reference, op)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        ctx.others = [None if isinstance(value, Tensor) else (value,) for value in inputs]
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            # Of values of their own: one that is computed from another is a second argument here.
            own = [t.view_as(t) if again else t.detach() for t in ctx.saved_tensors]
            saved = iter(own)
            arguments = [next(saved) if o is None else o[0] for o in ctx.others]
            wanted = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
            for i in wanted:
                arguments[i].requires_grad_()
            pairs = [
                (output, grad)
                for output, grad in zip(function(*arguments), grads, strict=True)
                if grad is not None and output.requires_grad
            ]
        result: list[Tensor | None] = [None] * len(arguments)
        if pairs:
            outputs, given = zip(*pairs, strict=True)
            found = torch.autograd.grad(
                outputs, [arguments[i] for i in wanted], given,
                create_graph=again, allow_unused=True,
            )  # fmt: skip
            for i, grad in zip(wanted, found, strict=True):
                result[i] = grad
        return tuple(result)

    register_autograd(op, backward, setup_context=setup)


def wanted_gradient(gradient: Tensor, argument: Tensor | None, wanted: bool) -> Tensor | None:
    """An operator's output as autograd wants it, which knows no empty tensors."""
    return gradient if wanted and argument is not None else None
