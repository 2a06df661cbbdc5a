"""``avg_pool_linear``: a network's average pooling and its last layer, called once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..schema import checks
from .arguments import check_input, check_tensor
from .autocast import register_autocast
from .autograd import register_autograd
from .onnx import refuse_onnx_export

_OPS = torch.ops.fastres
_OP = "avg_pool_linear"


def avg_pool_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The average of each channel, times a matrix, plus a vector: ``linear(x.mean((2, 3)))``.

    Args:
        x: [N, C, H, W], float32, bfloat16, float16 or float64; any strides.
        weight: [K, C] in the dtype of x.
        bias: [K] in the dtype of x, or None for 0.

    Returns:
        [N, K] in the dtype of x. Arithmetic is float32 (float64 for float64), rounded once; on a
        GPU averages are rounded, too.

    Raises:
        ValueError: shapes or devices that do not fit; names the argument.
        TypeError: a dtype other than these; names the argument.
    """
    device, _ = check_input(_OP, x)
    autocast = torch.is_autocast_enabled(device.type)
    dtypes = checks.FLOAT_DTYPES if autocast else (x.dtype,)
    check_tensor(_OP, "weight", weight, dtypes, device)
    if bias is not None:
        check_tensor(_OP, "bias", bias, dtypes, device)
    kernel = (reference if x.dtype == torch.float64 else _OPS).avg_pool_linear
    return kernel(x, weight, bias)


@torch.library.register_fake("fastres::avg_pool_linear")
def _avg_pool_linear_fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    refuse_onnx_export(_OP)
    return x.new_empty(checks.avg_pool_linear_shape(x, weight, bias))


def _avg_pool_linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.size = x.shape
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)


def _avg_pool_linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wide = reference.compute_dtype(grad)
    g = grad.to(wide)
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad
    grad_x = grad_weight = None
    if needs_x:
        averages = (g @ weight.to(wide)) / (ctx.size[2] * ctx.size[3])
        grad_x = averages[:, :, None, None].expand(ctx.size).to(grad.dtype)
    if needs_weight:
        grad_weight = (g.t() @ x.to(wide).mean((2, 3))).to(weight.dtype)
    return grad_x, grad_weight, g.sum(0).to(grad.dtype) if needs_bias else None


register_autograd(
    "avg_pool_linear", _avg_pool_linear_backward, setup_context=_avg_pool_linear_setup
)
register_autocast(_OP, (0, 1, 2))  # all, as linear does
