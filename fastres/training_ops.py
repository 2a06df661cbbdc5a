"""The operators of training: public functions, fake kernels, autograd and autocast.

BatchNorm in training is a convolution's per-channel statistics and then an affine. The convolution
returns the statistics beside its output, and the next one applies affine and activation where it
loads its input, so that neither runs as a pass of its own and no normalised activation is stored.
BatchNorm's own arithmetic (scale = gamma / sqrt(m2 / n + eps)) is plain PyTorch between the two.

Gradients run on kernels too. They can be differentiated again: that goes through the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _checks, training_reference
from . import _training_checks as checks
from ._arguments import IntOrPair, check_input, check_tensor, conv_geometry
from ._autocast import register_autocast
from ._autograd import register_autograd
from ._onnx import refuse_onnx_export

__all__ = ["affine_add_act", "conv_stats"]

_OPS = torch.ops.fastres


def _empty_channels_last(like: Tensor, shape: Sequence[int]) -> Tensor:
    n, c, h, w = shape
    return like.new_empty_strided((n, c, h, w), (h * w * c, 1, w * c, c))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _nothing(x: Tensor) -> Tensor:
    return x.new_empty(0, dtype=_wide(x))


def _given(gradient: Tensor, argument: Tensor | None, wanted: bool) -> Tensor | None:
    return gradient if wanted and argument is not None else None


def _differentiate_again(op: str) -> None:
    """Gradients of an operator that computes gradients: those of its reference."""
    function: Callable[..., tuple[Tensor, ...]] = getattr(training_reference, op)

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


# ---- conv_stats ----------------------------------------------------------------------------------


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
    weight_dtypes = (torch.float64,) if double else _checks.FLOAT_DTYPES[:3]
    check_tensor(op, "weight", weight, weight_dtypes, device)
    for name, vector in (("in_mean", in_mean), ("in_scale", in_scale), ("in_bias", in_bias)):
        if vector is not None:
            check_tensor(op, name, vector, vector_dtypes, device)
    if weight.dim() != 4:
        raise ValueError(
            f"{op}: weight must be 4-D [K, C/groups, R, S], got shape {list(weight.shape)}"
        )
    kernel = training_reference.conv_stats if double else _OPS.conv_stats
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
    shape = checks.conv_stats_shape(
        "conv_stats", x, in_mean, in_scale, in_bias, in_act, weight, *geometry
    )
    mean, m2 = (x.new_empty(shape[1], dtype=_wide(x)) for _ in range(2))
    return _empty_channels_last(x, shape), mean, m2


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
    return list(map(_given, gradients, inputs, needs))


def _conv_stats_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, y, mean = ctx.saved_tensors
    needs = (*ctx.needs_input_grad[:4], ctx.needs_input_grad[6])
    *before, weight = conv_stats_gradients(grads, inputs, ctx.act, (y, mean), ctx.geometry, needs)
    return (*before, None, None, weight, *[None] * len(ctx.geometry))


@torch.library.register_fake("fastres::conv_stats_backward")
def _conv_stats_backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    needs, more = arguments[16:19], arguments[19:]
    training_reference.conv_stats_backward_check(*arguments[:16], *more)
    need_x, need_affine, need_weight = needs
    x, in_mean, weight = arguments[3], arguments[4], arguments[9]
    vectors = [
        in_mean.new_empty(in_mean.shape) if need_affine and in_mean is not None else _nothing(x)
        for _ in range(3)
    ]
    return (
        _empty_channels_last(x, x.shape) if need_x else _nothing(x),
        *vectors,
        torch.empty_like(weight) if need_weight else _nothing(x),
    )


register_autograd("conv_stats", _conv_stats_backward, setup_context=_conv_stats_setup)
_differentiate_again("conv_stats_backward")
register_autocast("conv_stats", (0,))  # x; the kernels take the weight as it is


# ---- max_pool_places -----------------------------------------------------------------------------


@torch.library.register_fake("fastres::max_pool_places")
def _max_pool_places_fake(x: Tensor, *window: Sequence[int]) -> tuple[Tensor, Tensor]:
    shape = _checks.max_pool_places_shape(x.shape, *window)
    y = _empty_channels_last(x, shape)
    return y, torch.empty_like(y, dtype=torch.uint8)


@torch.library.register_fake("fastres::max_pool_places_backward")
def _max_pool_places_backward_fake(
    grad: Tensor, places: Tensor, size: Sequence[int], *window: Sequence[int]
) -> Tensor:
    shape = (*grad.shape[:2], *size)
    _checks.max_pool_places_shape(shape, *window)
    return _empty_channels_last(grad, shape)


# ---- affine_add_act ------------------------------------------------------------------------------


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
    check_tensor(op, "y", y, _checks.FLOAT_DTYPES, None)
    dtypes = (_wide(y),)
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
    kernel = training_reference.affine_add_act if double else _OPS.affine_add_act
    return kernel(
        y, mean, scale, bias, residual, res_mean, res_scale, res_bias, act, act_slope
    )  # fmt: skip


@torch.library.register_fake("fastres::affine_add_act")
def _affine_add_act_fake(y: Tensor, *arguments: Any) -> Tensor:
    refuse_onnx_export("affine_add_act")
    checks.affine_add_act_check("affine_add_act", y, *arguments[:-1])
    return _empty_channels_last(y, y.shape)


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
    return list(map(_given, gradients, inputs, needs))


def _affine_add_act_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:8]
    return (*affine_add_act_gradients(grad, ctx.saved_tensors, ctx.act, needs), None, None)


@torch.library.register_fake("fastres::affine_add_act_backward")
def _affine_add_act_backward_fake(grad: Tensor, y: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    op = "affine_add_act_backward"
    checks.affine_add_act_check(op, y, *arguments[:8])
    checks.like_check(op, y, "y", grad=grad)
    mean, _, _, residual, res_mean, *_ = arguments
    left_out = residual is None or True in arguments[9:]
    shortcut = y.new_empty(0) if left_out else _empty_channels_last(y, y.shape)
    none = _nothing(y)
    return (
        _empty_channels_last(y, y.shape),
        *(torch.empty_like(mean) for _ in range(3)),
        shortcut,
        *(none.clone() if res_mean is None else torch.empty_like(mean) for _ in range(3)),
    )


register_autograd("affine_add_act", _affine_add_act_backward, setup_context=_affine_add_act_setup)
_differentiate_again("affine_add_act_backward")
