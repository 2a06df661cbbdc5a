"""``affine_add_act`` and its gradients: the end of a block in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..schema import checks, training_checks
from .arguments import check_tensor
from .autograd import differentiate_again, register_autograd, wanted_gradient
from .empty import empty_channels_last, nothing, wide_dtype
from .onnx import refuse_onnx_export

_OPS = torch.ops.fastres


def affine_add_act(
    y: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    res_mean: Tensor | None = None,
    res_scale: Tensor | None = None,
    res_bias: Tensor | None = None,
    *,
    act: str = "relu",
    act_slope: float = 0.01,
) -> Tensor:
    """The end of a block in one pass: ``act((y - mean) * scale + bias + shortcut)``.

    The affine is kept centred: folded into ``y * scale + shift`` it would lose digits where the
    mean is far larger than the deviations from it.

    Args:
        y: [N, C, H, W], float32, bfloat16, float16 or float64; any strides.
        mean: [C], float32 (float64 for a float64 y).
        scale: [C].
        bias: [C].
        residual: [N, C, H, W] in the dtype of y, any strides, or None for no shortcut.
        res_mean: [C], for the shortcut ``(residual - res_mean) * res_scale + res_bias``, that of a
            block whose shortcut has a BatchNorm; None for ``residual`` itself.
        res_scale: [C], with ``res_mean``.
        res_bias: [C], with ``res_mean``.
        act: "none", "relu", "relu6", "silu" or "leaky_relu".
        act_slope: leaky_relu's negative slope.

    Returns:
        [N, C, H, W] in the dtype of y, with dense channels_last strides. Arithmetic is float32
        (float64 for float64), rounded once.

    Raises:
        ValueError: shapes, devices or values that do not fit; names the argument.
        TypeError: a dtype other than these; names the argument.
    """
    op = "affine_add_act"
    check_tensor(op, "y", y, checks.FLOAT_DTYPES, None)
    dtypes = (wide_dtype(y),)
    for name, vector in (
        ("mean", mean),
        ("scale", scale),
        ("bias", bias),
        ("res_mean", res_mean),
        ("res_scale", res_scale),
        ("res_bias", res_bias),
    ):
        if vector is not None or not name.startswith("res_"):
            check_tensor(op, name, vector, dtypes, y.device)
    if residual is not None:
        check_tensor(op, "residual", residual, (y.dtype,), y.device)
    double = y.dtype == torch.float64
    kernel = reference.affine_add_act if double else _OPS.affine_add_act
    return kernel(
        y, mean, scale, bias, residual, res_mean, res_scale, res_bias, act, act_slope
    )  # fmt: skip


@torch.library.register_fake("fastres::affine_add_act")
def _affine_add_act_fake(y: Tensor, *arguments: Any) -> Tensor:
    refuse_onnx_export("affine_add_act")
    training_checks.affine_add_act_check("affine_add_act", y, *arguments[:-1])
    return empty_channels_last(y, y.shape)


def _affine_add_act_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, act, act_slope = inputs
    ctx.act = act, act_slope
    ctx.save_for_backward(*tensors)


def affine_add_act_gradients(
    grad: Tensor,
    inputs: Sequence[Tensor | None],
    act: Sequence[Any],
    needs: Sequence[bool],
    unscaled: bool = False,
) -> list[Tensor | None]:
    """The gradients of ``affine_add_act``'s tensors, for that of its output.

    Args:
        grad: the output's.
        inputs: y, mean, scale, bias, residual, res_mean, res_scale and res_bias.
        act: act and act_slope.
        needs: for each of ``inputs``, whether its gradient is wanted.
        unscaled: whether to leave those of y and residual unmultiplied by scale and res_scale,
            which makes them one tensor.

    Returns:
        A gradient for each of ``inputs``, None where it is not wanted or there is no input.
    """
    gradients = list(_OPS.affine_add_act_backward(grad, *inputs, *act, unscaled))
    if unscaled:
        gradients[4] = gradients[0]
    return list(map(wanted_gradient, gradients, inputs, needs))


def _affine_add_act_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:8]
    return (*affine_add_act_gradients(grad, ctx.saved_tensors, ctx.act, needs), None, None)


@torch.library.register_fake("fastres::affine_add_act_backward")
def _affine_add_act_backward_fake(grad: Tensor, y: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    op = "affine_add_act_backward"
    training_checks.affine_add_act_check(op, y, *arguments[:8])
    training_checks.like_check(op, y, "y", grad=grad)
    mean, _, _, residual, res_mean, *_ = arguments
    left_out = residual is None or True in arguments[9:]
    shortcut = y.new_empty(0) if left_out else empty_channels_last(y, y.shape)
    none = nothing(y)
    return (
        empty_channels_last(y, y.shape),
        *(torch.empty_like(mean) for _ in range(3)),
        shortcut,
        *(none.clone() if res_mean is None else torch.empty_like(mean) for _ in range(3)),
    )


register_autograd("affine_add_act", _affine_add_act_backward, setup_context=_affine_add_act_setup)
differentiate_again("affine_add_act_backward")
