"""The operators of training in plain PyTorch.

Arithmetic is float64 for
float64 inputs and float32 for float32, bfloat16 and float16; statistics are summed in float64. All
of it is differentiable, the gradients too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from ..schema import checks, training_checks
from ..schema.checks import Shape
from .gradients import act_grad
from .inference import apply_act, channels_last, compute_dtype, with_usual_strides

_CHANNELS = (0, 2, 3)  # what a per-channel sum runs over


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None]


def affine(x: Tensor, mean: Tensor | None, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    """``(x - mean) * scale + bias`` per channel, or x where they are None."""
    if mean is None or scale is None or bias is None:
        return x
    return (x - _per_channel(mean)) * _per_channel(scale) + _per_channel(bias)


def _pad(x: Tensor, padding: Sequence[int]) -> Tensor:
    top, bottom, left, right = padding
    return F.pad(x, (left, right, top, bottom))


def _sum(values: Tensor) -> Tensor:
    return values.double().sum(_CHANNELS).to(values.dtype)


def _statistics(y: Tensor) -> tuple[Tensor, Tensor]:
    wide = y.double()
    count = max(1, y.shape[0] * y.shape[2] * y.shape[3])
    mean = wide.sum(_CHANNELS) / count
    m2 = (wide - _per_channel(mean)).square().sum(_CHANNELS)
    return mean.to(y.dtype), m2.to(y.dtype)


def conv_stats(
    x: Tensor,
    in_mean: Tensor | None,
    in_scale: Tensor | None,
    in_bias: Tensor | None,
    in_act: str,
    in_act_slope: float,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    algorithm: str = "direct",
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolution of ``in_act((x - in_mean) * in_scale + in_bias)``, and its statistics.

    Args:
        x: [N, C, H, W], any float dtype and strides.
        in_mean: [C], float32 (float64 for a float64 x), or None for no affine.
        in_scale: [C], with ``in_mean``.
        in_bias: [C], with ``in_mean``.
        in_act: none, relu, relu6, silu or leaky_relu.
        in_act_slope: leaky_relu's negative slope.
        weight: [K, C/groups, R, S].
        stride: (vertical, horizontal).
        padding: (top, bottom, left, right), with zeros, of the activated input.
        dilation: (vertical, horizontal).
        groups: divides C and K.
        algorithm: "direct" or "winograd", by which kernels convolve; here it is checked alone.

    Returns:
        y [N, K, OH, OW] in the dtype of x, dense channels_last strides; per channel of y, before it
        is rounded to its dtype, the mean and the sum of squared deviations from it, [K].

    Raises:
        ValueError: the arguments do not fit together.
    """
    training_checks.conv_stats_shape(
        "conv_stats", x, in_mean, in_scale, in_bias, in_act, weight, stride, padding, dilation,
        groups, algorithm,
    )  # fmt: skip
    wide = compute_dtype(x)
    activated = apply_act(affine(x.to(wide), in_mean, in_scale, in_bias), in_act, in_act_slope)
    padded = with_usual_strides(_pad(activated, padding))
    y = F.conv2d(padded, weight.to(wide), None, stride, 0, dilation, groups)
    mean, m2 = _statistics(y)
    return channels_last(y.to(x.dtype)), mean, m2


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``conv_stats``.

    Args:
        grad_y: gradient of y, its shape and dtype, any strides.
        grad_mean: gradient of mean, [K], or None for 0.
        grad_m2: gradient of m2, [K], or None for 0.
        x: as ``conv_stats`` got it, and so the arguments after it.
        in_mean: of ``conv_stats``.
        in_scale: of ``conv_stats``.
        in_bias: of ``conv_stats``.
        in_act: of ``conv_stats``.
        in_act_slope: of ``conv_stats``.
        weight: of ``conv_stats``.
        y: what ``conv_stats`` returned.
        mean: what ``conv_stats`` returned.
        stride: of ``conv_stats``.
        padding: of ``conv_stats``.
        dilation: of ``conv_stats``.
        groups: of ``conv_stats``.
        need_x: whether x's gradient is wanted.
        need_affine: whether those of in_mean, in_scale and in_bias are.
        need_weight: whether weight's is.
        grad_scale: [K], what ``grad_y`` is to be multiplied by, or None for 1.
        grad_in: shape and dtype of x, any strides: what else flows into the gradient of the
            activated input, as where a shortcut starts; or None.
        algorithm: of ``conv_stats``.
        in_residual: shape and dtype of x, any strides: where ``affine_add_act`` has activated the
            input, what it added; ``in_mean`` and the others are its constants then, and ``in_act``
            its activation. None where the convolution did.
        activated: with ``in_residual``: the result, which the convolution took for its input.

    Returns:
        The gradients of x (dense channels_last), in_mean, in_scale, in_bias and weight (of weight's
        strides); of shape [0] where not wanted or without the argument. With ``in_residual`` the
        first is its gradient, of which x's is in_scale times.

    Raises:
        ValueError: the arguments do not fit together.
    """
    shape = conv_stats_backward_check(
        grad_y, grad_mean, grad_m2, x, in_mean, in_scale, in_bias, in_act, in_act_slope, weight, y,
        mean, stride, padding, dilation, groups, grad_scale, grad_in, algorithm, in_residual,
        activated,
    )  # fmt: skip
    wide = compute_dtype(x)
    grad = grad_y.to(wide)
    if grad_scale is not None:
        grad = grad * _per_channel(grad_scale)
    if grad_mean is not None:
        grad = grad + _per_channel(grad_mean) / max(1, shape[0] * shape[2] * shape[3])
    if grad_m2 is not None:
        grad = grad + 2 * _per_channel(grad_m2) * (y.to(wide) - _per_channel(mean))

    gradients = [x.new_empty(0, dtype=wide) for _ in range(5)]
    before = affine(x.to(wide), in_mean, in_scale, in_bias)
    if in_residual is not None:
        before = before + in_residual.to(wide)
    inside = apply_act(before, in_act, in_act_slope) if activated is None else activated.to(wide)
    padded = with_usual_strides(_pad(inside, padding))
    if need_x or (need_affine and in_mean is not None):
        # With the input itself, whose strides choose PyTorch's kernel: conv2d_input's stand-in has
        # none, and then an AVX2 processor's sums have twice the error.
        g, _, _ = torch.ops.aten.convolution_backward(
            grad, padded, weight.to(wide), None, stride, [0, 0], dilation, False, [0, 0], groups,
            [True, False, False],
        )  # fmt: skip
        top, _, left, _ = padding
        g = g[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        if grad_in is not None:
            g = g + grad_in.to(wide)
        g = act_grad(g, before, in_act, in_act_slope)
        if need_x:
            grad_x = g
            if in_scale is not None and in_residual is None:
                grad_x = g * _per_channel(in_scale)
            gradients[0] = channels_last(grad_x.to(x.dtype))
        if need_affine and in_mean is not None and in_scale is not None:
            gradients[1:4] = _affine_grads(g, x.to(wide), in_mean, in_scale)
    if need_weight:
        grad_weight = conv2d_weight(padded, weight.shape, grad, stride, 0, dilation, groups)
        gradients[4] = torch.empty_like(weight).copy_(grad_weight)
    first, second, third, fourth, fifth = gradients
    return first, second, third, fourth, fifth


def conv_stats_backward_check(
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
    grad_scale: Tensor | None = None,
    grad_in: Tensor | None = None,
    algorithm: str = "direct",
    in_residual: Tensor | None = None,
    activated: Tensor | None = None,
) -> Shape:
    """Checks the arguments of ``conv_stats_backward`` and returns y's shape.

    Raises:
        ValueError: names the argument, what it is and what it has to be.
    """
    op = "conv_stats_backward"
    shape = training_checks.conv_stats_shape(
        op, x, in_mean, in_scale, in_bias, in_act, weight, stride, padding, dilation, groups,
        algorithm,
    )  # fmt: skip
    training_checks.output_like_check(op, shape, x, grad_y=grad_y, y=y)
    training_checks.require_channels(
        op, y, grad_mean=grad_mean, grad_m2=grad_m2, mean=mean, grad_scale=grad_scale
    )
    if grad_in is not None:
        training_checks.like_check(op, x, "x", grad_in=grad_in)
    if (in_residual is None) != (activated is None):
        raise ValueError(f"{op}: in_residual and activated must be given together or not at all")
    if in_residual is not None and activated is not None:
        if in_mean is None:
            raise ValueError(f"{op}: in_residual needs in_mean, in_scale and in_bias")
        training_checks.like_check(op, x, "x", in_residual=in_residual, activated=activated)
    return shape


def _affine_grads(g: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    """Gradients of an affine's mean, scale and bias, from that of its output."""
    bias = _sum(g)
    return -scale * bias, _sum(g * (x - _per_channel(mean))), bias


def max_pool_places(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """``max_pool``, and where in its window each value was.

    Args:
        x: [N, C, H, W], any float dtype and strides.
        kernel_size: (R, S), at most 256 places.
        stride: (vertical, horizontal).
        padding: (vertical, horizontal), each at most half of the window.

    Returns:
        [N, C, OH, OW] in the dtype of x, and ``row * S + column`` of the same shape, uint8; both
        with dense channels_last strides.

    Raises:
        ValueError: the arguments do not fit together.
    """
    checks.max_pool_places_shape(x.shape, kernel_size, stride, padding)
    window = (list(kernel_size), list(stride), list(padding))
    y, indices = torch.ops.aten.max_pool2d_with_indices(x, *window)
    rows, columns = _window_starts(indices, stride, padding)
    width = x.shape[3]
    places = (indices // width - rows) * kernel_size[1] + indices % width - columns
    return channels_last(y), channels_last(places.to(torch.uint8))


def max_pool_places_backward(
    grad: Tensor,
    places: Tensor,
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """The gradient of ``max_pool_places``'s x, which is of this size (H, W).

    Args:
        grad: [N, C, OH, OW], any float dtype and strides.
        places: of ``max_pool_places``.
        size: of x.
        kernel_size: (R, S).
        stride: (vertical, horizontal).
        padding: (vertical, horizontal).

    Returns:
        [N, C, H, W] in the dtype of grad, dense channels_last strides.

    Raises:
        ValueError: the arguments do not fit together.
    """
    shape = (grad.shape[0], grad.shape[1], *size)
    checks.max_pool_places_shape(shape, kernel_size, stride, padding)
    rows, columns = _window_starts(places, stride, padding)
    where = places.long()
    row, column = where // kernel_size[1], where % kernel_size[1]
    indices = (rows + row) * size[1] + columns + column
    wide = grad.to(compute_dtype(grad))
    # Its shape and strides are read alone.
    x = wide.new_empty(shape).contiguous(memory_format=torch.channels_last)
    window = (list(kernel_size), list(stride), list(padding), [1, 1], False)
    backward = torch.ops.aten.max_pool2d_with_indices_backward
    return channels_last(backward(wide, x, *window, indices).to(grad.dtype))


def _window_starts(
    like: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Row and column of the first value of each output's window; negative in the padding."""
    rows, columns = (
        torch.arange(count, device=like.device) * step - border
        for count, step, border in zip(like.shape[2:], stride, padding, strict=True)
    )
    return rows[:, None], columns


def affine_add_act(
    y: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    res_mean: Tensor | None,
    res_scale: Tensor | None,
    res_bias: Tensor | None,
    act: str,
    act_slope: float,
) -> Tensor:
    """``act((y - mean) * scale + bias + shortcut)``.

    Args:
        y: [N, C, H, W], any float dtype and strides.
        mean: [C], float32 (float64 for a float64 y).
        scale: [C].
        bias: [C].
        residual: shape and dtype of y, any strides, or None.
        res_mean: [C], or None for the shortcut ``residual`` instead of
            ``(residual - res_mean) * res_scale + res_bias``.
        res_scale: [C], with ``res_mean``.
        res_bias: [C], with ``res_mean``.
        act: none, relu, relu6, silu or leaky_relu.
        act_slope: leaky_relu's negative slope.

    Returns:
        [N, C, H, W] in the dtype of y, dense channels_last strides.

    Raises:
        ValueError: the arguments do not fit together.
    """
    op = "affine_add_act"
    training_checks.affine_add_act_check(
        op, y, mean, scale, bias, residual, res_mean, res_scale, res_bias, act
    )
    out = _block_end(y, mean, scale, bias, residual, res_mean, res_scale, res_bias)
    return channels_last(apply_act(out, act, act_slope).to(y.dtype))


def _block_end(
    y: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    res_mean: Tensor | None,
    res_scale: Tensor | None,
    res_bias: Tensor | None,
) -> Tensor:
    wide = compute_dtype(y)
    out = affine(y.to(wide), mean, scale, bias)
    if residual is not None:
        out = out + affine(residual.to(wide), res_mean, res_scale, res_bias)
    return out


def affine_add_act_backward(
    grad: Tensor,
    y: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    res_mean: Tensor | None,
    res_scale: Tensor | None,
    res_bias: Tensor | None,
    act: str,
    act_slope: float,
    unscaled: bool = False,
) -> tuple[Tensor, ...]:
    """Gradients of ``affine_add_act``.

    Args:
        grad: gradient of its output, shape and dtype of y, any strides.
        y: as ``affine_add_act`` got it, and so the arguments after it.
        mean: of ``affine_add_act``.
        scale: of ``affine_add_act``.
        bias: of ``affine_add_act``.
        residual: of ``affine_add_act``.
        res_mean: of ``affine_add_act``.
        res_scale: of ``affine_add_act``.
        res_bias: of ``affine_add_act``.
        act: of ``affine_add_act``.
        act_slope: of ``affine_add_act``.
        unscaled: whether y's gradient comes back before it is multiplied by scale, which makes it
            the residual's before res_scale too; the residual's is left out then.

    Returns:
        The gradients of y (dense channels_last), mean, scale, bias, residual (dense channels_last),
        res_mean, res_scale and res_bias; of shape [0] without the argument or where left out.

    Raises:
        ValueError: the arguments do not fit together.
    """
    op = "affine_add_act_backward"
    training_checks.affine_add_act_check(
        op, y, mean, scale, bias, residual, res_mean, res_scale, res_bias, act
    )
    training_checks.output_like_check(op, tuple(y.shape), y, grad=grad)
    wide = compute_dtype(y)
    before = _block_end(y, mean, scale, bias, residual, res_mean, res_scale, res_bias)
    g = act_grad(grad.to(wide), before, act, act_slope)
    grad_y = channels_last((g if unscaled else g * _per_channel(scale)).to(y.dtype))
    main = _affine_grads(g, y.to(wide), mean, scale)
    shortcut = tuple(y.new_empty(0, dtype=wide) for _ in range(3))
    grad_residual = y.new_empty(0)
    if residual is not None:
        if not unscaled:
            factor = 1 if res_scale is None else _per_channel(res_scale)
            grad_residual = channels_last((g * factor).to(y.dtype))
        if res_mean is not None and res_scale is not None:
            shortcut = _affine_grads(g, residual.to(wide), res_mean, res_scale)
    return (grad_y, *main, grad_residual, *shortcut)
