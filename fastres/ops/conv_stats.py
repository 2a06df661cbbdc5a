"""``conv_stats`` and its gradients: a convolution of training, with its output's statistics.

BatchNorm in training is a convolution's per-channel statistics and then an affine. The convolution
returns the statistics beside its output, and the next one applies affine and activation where it
loads its input, so that neither runs as a pass of its own and no normalised activation is stored.
BatchNorm's own arithmetic (scale = gamma / sqrt(m2 / n + eps)) is plain PyTorch between the two.

Gradients run on kernels too. They can be differentiated again: that goes through the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..schema import checks, training_checks
from .arguments import IntOrPair, check_input, check_tensor, conv_geometry
from .autocast import register_autocast
from .autograd import differentiate_again, register_autograd, wanted_gradient
from .empty import empty_channels_last, nothing, wide_dtype

_OPS = torch.ops.fastres


def conv_stats(
    x: Tensor,
    weight: Tensor,
    in_mean: Tensor | None = None,
    in_scale: Tensor | None = None,
    in_bias: Tensor | None = None,
    *,
    in_act: str = "none",
    in_act_slope: float = 0.01,
    stride: IntOrPair = 1,
    padding: str | IntOrPair = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    algorithm: str = "direct",
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolves ``in_act((x - in_mean) * in_scale + in_bias)`` and takes the output's statistics.

    What BatchNorm in training needs of a convolution, in one pass over its input. A convolution's
    bias is left out: it moves the mean, which the BatchNorm after it takes away.

    Args:
        x: [N, C, H, W], float32, bfloat16, float16 or float64; any strides.
        weight: [K, C/groups, R, S], float32, bfloat16 or float16; float64 with a float64 x.
        in_mean: [C], float32 (float64 for a float64 x): the mean of the BatchNorm before, or None
            for no affine.
        in_scale: [C], with ``in_mean``: its gamma / sqrt(variance + eps).
        in_bias: [C], with ``in_mean``: its beta.
        in_act: "none", "relu", "relu6", "silu" or "leaky_relu", of the BatchNorm's output.
        in_act_slope: leaky_relu's negative slope.
        stride: int or (vertical, horizontal).
        padding: int, (vertical, horizontal), (top, bottom, left, right), "same" or "valid"; with
            zeros, of the activated input.
        dilation: int or (vertical, horizontal).
        groups: divides C and K.
        algorithm: "direct", or "winograd" for a dense 3x3 with stride and dilation 1: F(2x2, 3x3)
            of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), in the
            gradients as well, where the CPU's kernels run. Others convolve directly.

    Returns:
        (y, mean, m2): y is [N, K, OH, OW] in the dtype of x with dense channels_last strides; mean
        and m2, [K] and float32 (float64 for float64), are the mean of each channel of y before it
        is rounded and the sum of squared deviations from it, merged from parts of the batch as in
        Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
        variances" (1979). Both are 0 for an empty batch. Bits do not depend on the number of
        threads.

    Raises:
        ValueError: shapes, devices or values that do not fit; names the argument.
        TypeError: a dtype other than these; names the argument.
    """
    op = "conv_stats"
    device, vector_dtypes = check_input(op, x)
    double = x.dtype == torch.float64
    weight_dtypes = (torch.float64,) if double else checks.FLOAT_DTYPES[:3]
    check_tensor(op, "weight", weight, weight_dtypes, device)
    for name, vector in (("in_mean", in_mean), ("in_scale", in_scale), ("in_bias", in_bias)):
        if vector is not None:
            check_tensor(op, name, vector, vector_dtypes, device)
    if weight.dim() != 4:
        raise ValueError(
            f"{op}: weight must be 4-D [K, C/groups, R, S], got shape {list(weight.shape)}"
        )
    kernel = reference.conv_stats if double else _OPS.conv_stats
    return kernel(
        x,
        in_mean,
        in_scale,
        in_bias,
        in_act,
        in_act_slope,
        weight,
        *conv_geometry(op, tuple(weight.shape[2:]), stride, padding, dilation),
        groups,
        algorithm,
    )


@torch.library.register_fake("fastres::conv_stats")
def _conv_stats_fake(
    x: Tensor,
    in_mean: Tensor | None,
    in_scale: Tensor | None,
    in_bias: Tensor | None,
    in_act: str,
    in_act_slope: float,
    weight: Tensor,
    *geometry: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = training_checks.conv_stats_shape(
        "conv_stats", x, in_mean, in_scale, in_bias, in_act, weight, *geometry
    )
    mean, m2 = (x.new_empty(shape[1], dtype=wide_dtype(x)) for _ in range(2))
    return empty_channels_last(x, shape), mean, m2


def _conv_stats_setup(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, in_mean, in_scale, in_bias, act, act_slope, weight, *ctx.geometry = inputs
    ctx.act = act, act_slope
    y, mean, _ = output
    ctx.save_for_backward(x, in_mean, in_scale, in_bias, weight, y, mean)
    ctx.set_materialize_grads(False)


def conv_stats_gradients(
    grads: Sequence[Tensor | None],
    inputs: Sequence[Tensor | None],
    act: Sequence[Any],
    outputs: Sequence[Tensor],
    geometry: Sequence[Any],
    needs: Sequence[bool],
    grad_scale: Tensor | None = None,
    grad_in: Tensor | None = None,
    activated: Sequence[Tensor | None] = (),
) -> list[Tensor | None]:
    """The gradients of ``conv_stats``'s tensors.

    Args:
        grads: those of y, mean and m2; None for 0.
        inputs: x, in_mean, in_scale, in_bias and weight.
        act: in_act and in_act_slope.
        outputs: y and mean.
        geometry: stride, padding, dilation, groups and algorithm, as the operator takes them.
        needs: for each of ``inputs``, whether its gradient is wanted.
        grad_scale: what y's gradient is to be multiplied by, if anything.
        grad_in: another gradient of the activated input, if there is one.
        activated: in_residual and the activated input, if ``inputs`` and ``act`` are those of the
            ``affine_add_act`` that activated it; x's gradient is then in_residual's.

    Returns:
        A gradient for each of ``inputs``, None where it is not wanted or there is no input.
    """
    grad_y, grad_mean, grad_m2 = grads
    y, mean = outputs
    if grad_y is None:
        grad_y = torch.zeros_like(y)
    *before, weight = inputs
    *sizes, algorithm = geometry
    gradients = _OPS.conv_stats_backward(
        grad_y, grad_mean, grad_m2, *before, *act, weight, y, mean, *sizes,
        needs[0], any(needs[1:4]), needs[4], grad_scale, grad_in, algorithm, *activated,
    )  # fmt: skip
    return list(map(wanted_gradient, gradients, inputs, needs))


def _conv_stats_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, y, mean = ctx.saved_tensors
    needs = (*ctx.needs_input_grad[:4], ctx.needs_input_grad[6])
    *before, weight = conv_stats_gradients(grads, inputs, ctx.act, (y, mean), ctx.geometry, needs)
    return (*before, None, None, weight, *[None] * len(ctx.geometry))


@torch.library.register_fake("fastres::conv_stats_backward")
def _conv_stats_backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    needs, more = arguments[16:19], arguments[19:]
    reference.conv_stats_backward_check(*arguments[:16], *more)
    need_x, need_affine, need_weight = needs
    x, in_mean, weight = arguments[3], arguments[4], arguments[9]
    vectors = [
        in_mean.new_empty(in_mean.shape) if need_affine and in_mean is not None else nothing(x)
        for _ in range(3)
    ]
    return (
        empty_channels_last(x, x.shape) if need_x else nothing(x),
        *vectors,
        torch.empty_like(weight) if need_weight else nothing(x),
    )


register_autograd("conv_stats", _conv_stats_backward, setup_context=_conv_stats_setup)
differentiate_again("conv_stats_backward")
register_autocast("conv_stats", (0,))  # x; the kernels take the weight as it is
