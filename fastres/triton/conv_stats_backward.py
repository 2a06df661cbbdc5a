"""conv_stats_backward: both gradients, the output's formed while either loads it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from .coverage import otherwise
from .dgrad import dgrad
from .fprop import Affine, Geometry
from .moments import sum_parts
from .operands import transposed_operand
from .output_gradient import output_gradient
from .wgrad import wgrad


@otherwise(reference.conv_stats_backward)
def conv_stats_backward(
    grad_y: Tensor,
    grad_mean: Tensor | None,
    grad_m2: Tensor | None,
    x: Tensor,
    in_mean: Tensor | None,
    in_scale: Tensor | None,
    in_bias: Tensor | None,
    in_act: str,
    in_act_slope: float,
    weight: Tensor,
    y: Tensor,
    mean: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    need_x: bool,
    need_affine: bool,
    need_weight: bool,
    grad_scale: Tensor | None = None,
    grad_in: Tensor | None = None,
    algorithm: str = "direct",
    in_residual: Tensor | None = None,
    activated: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of ``conv_stats``, see ``reference.conv_stats_backward``."""
    reference.conv_stats_backward_check(
        grad_y, grad_mean, grad_m2, x, in_mean, in_scale, in_bias, in_act, in_act_slope, weight, y,
        mean, stride, padding, dilation, groups, grad_scale, grad_in, algorithm, in_residual,
        activated,
    )  # fmt: skip
    gradient = output_gradient(grad_y, y, mean, grad_scale, grad_mean, grad_m2)
    geometry, prologue = Geometry(stride, padding, dilation), Affine(in_mean, in_scale, in_bias)
    gradients = [x.new_empty(0, dtype=torch.float32) for _ in range(5)]
    need_affine = need_affine and in_scale is not None
    if need_x or need_affine:
        grad_x, parts = dgrad(
            gradient, x, transposed_operand(weight, groups, x.dtype), geometry, prologue,
            in_act, in_act_slope, grad_in, in_residual, need_x=need_x,
            need_affine=need_affine,
        )  # fmt: skip
        if grad_x is not None:
            gradients[0] = grad_x
        if parts is not None and in_scale is not None:
            total, centred = sum_parts(parts)
            gradients[1:4] = -in_scale * total, centred, total
    if need_weight and activated is not None:
        plain = Affine(None, None, None)
        gradients[4] = wgrad(gradient, activated, weight, geometry, plain, "none", 0.0, groups)
    elif need_weight:
        gradients[4] = wgrad(gradient, x, weight, geometry, prologue, in_act, in_act_slope, groups)
    return tuple(gradients)
