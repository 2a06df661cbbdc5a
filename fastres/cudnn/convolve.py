"""A convolution with shift, shortcut and activation, in as few of cuDNN's kernels as it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import reference
from ..composed import Geometry

# Arguments that were checked, without the tensors: checking costs a small convolution's time.
_checked: set[tuple[object, ...]] = set()
_MOST_KEPT = 1 << 14

# Convolutions that cuDNN has no fused kernel for, as it said when it was asked.
_refused: set[tuple[object, ...]] = set()
_NO_ENGINE = "unable to find an engine"


def once_for_all_alike(
    check: Callable[..., object], tensors: Sequence[Tensor | None], options: Sequence[object]
) -> None:
    """Calls ``check(*tensors, *options)`` unless it has passed for arguments of these kinds.

    Raises:
        ValueError: ``check`` does.
    """
    kinds = (None if t is None else (t.shape, t.dtype, t.device) for t in tensors)
    plain = (tuple(o) if isinstance(o, list) else o for o in options)
    key = (check, *kinds, *plain)
    if key in _checked:
        return
    check(*tensors, *options)
    if len(_checked) >= _MOST_KEPT:
        _checked.clear()
    _checked.add(key)


def convolve(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    geometry: Geometry,
    act: str,
    act_slope: float,
) -> Tensor:
    """``act(conv(x, weight) + shift + residual)``; shapes fit together.

    Args:
        x: [N, C, H, W], float32, bfloat16 or float16, any strides.
        weight: [K, C/groups, R, S] in the dtype of x.
        shift: [K], float32; rounded to the dtype of x.
        residual: [N, K, OH, OW] in the dtype of x, or None.
        geometry: of the convolution.
        act: an activation of the operators.
        act_slope: leaky_relu's.

    Returns:
        [N, K, OH, OW] in the dtype of x, dense channels_last strides.
    """
    stride, (top, bottom, left, right), dilation, groups = geometry
    if (top, left) != (bottom, right):
        x = F.pad(x, (left, right, top, bottom))
        top = left = 0
    x = x.contiguous(memory_format=torch.channels_last)
    weight = weight.contiguous(memory_format=torch.channels_last)
    options = list(stride), [top, left], list(dilation), groups
    shift = shift.to(x.dtype)
    y = None
    if act == "relu" and x.is_cuda and x.numel():
        y = _in_one_kernel(x, weight, shift, residual, options)
    if y is None:
        y = torch.conv2d(x, weight, None, *options).add_(shift[:, None, None])
        if residual is not None:
            y.add_(residual)
        y = reference.apply_act(y, act, act_slope)
    _, k, h, w = y.shape
    return y if y.stride() == (h * w * k, 1, w * k, k) else reference.channels_last(y)


def _in_one_kernel(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    options: tuple[list[int], list[int], list[int], int],
) -> Tensor | None:
    """The same with ReLU, None where cuDNN has no kernel that does it all."""
    stride, padding, dilation, groups = options
    key = (
        *(x.dtype, x.device, x.shape, weight.shape, residual is None),
        *(*stride, *padding, *dilation, groups),
    )
    if key in _refused:
        return None
    try:
        if residual is None:
            return torch.cudnn_convolution_relu(x, weight, shift, *options)
        shortcut = residual.contiguous(memory_format=torch.channels_last)
        return torch.cudnn_convolution_add_relu(x, weight, shortcut, 1.0, shift, *options)
    except RuntimeError as error:
        if _NO_ENGINE not in str(error):
            raise
        if len(_refused) >= _MOST_KEPT:
            _refused.clear()
        _refused.add(key)
        return None
