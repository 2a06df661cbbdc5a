"""``max_pool``: max-pooling of channels_last images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..schema import checks
from .arguments import (
    IntOrPair,
    check_input,
    pair,
)
from .autograd import register_autograd
from .empty import empty_channels_last
from .onnx import refuse_onnx_export

_OPS = torch.ops.fastres


def max_pool(
    x: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
) -> Tensor:
    """``F.max_pool2d`` with channels_last output.

    Args:
        x: [N, C, H, W], float32, bfloat16, float16 or float64; any strides.
        kernel_size: int or (R, S).
        stride: int or (vertical, horizontal); None for kernel_size.
        padding: int or (vertical, horizontal), at most half of kernel_size.

    Returns:
        [N, C, OH, OW] in the dtype of x, with dense channels_last strides; NaN where a window has
        one.

    Raises:
        ValueError: shapes or values that do not fit; names the argument.
        TypeError: a dtype other than these; names the argument.
    """
    check_input("max_pool", x)
    kernel = (reference if x.dtype == torch.float64 else _OPS).max_pool
    window = pair("kernel_size", kernel_size)
    step = window if stride is None else pair("stride", stride)
    return kernel(x, window, step, pair("padding", padding))


@torch.library.register_fake("fastres::max_pool")
def _max_pool_fake(x: Tensor, *args: Any) -> Tensor:
    refuse_onnx_export("max_pool")
    return empty_channels_last(x, checks.max_pool_shape(x, *args))


def _max_pool_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *ctx.window = inputs
    ctx.save_for_backward(x)


def pooled_grad(grad: Tensor, x: Tensor, window: Sequence[Any]) -> Tensor:
    """Looks for the largest values again: the forward did not store where they were."""
    window = (*window, [1, 1], False)
    _, indices = torch.ops.aten.max_pool2d_with_indices(x, *window)
    return torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *window, indices)


def _max_pool_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    return pooled_grad(grad, x, ctx.window), None, None, None


register_autograd("max_pool", _max_pool_backward, setup_context=_max_pool_setup)
