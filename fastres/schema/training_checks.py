"""Checks and output shapes of the training operators, as in csrc/cpu/training/prologue.cpp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from . import checks
from .checks import Shape, _require_ints, _require_same_device, require_activation


def require_channels(op: str, like: Tensor, **vectors: Tensor | None) -> None:
    """Checks vectors of one value per channel of ``like``, in its compute dtype."""
    channels = like.shape[1]
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    for name, vector in vectors.items():
        if vector is not None:
            _require_vector(op, name, vector, channels, dtype)
    _require_same_device(op, like, **vectors)


def _require_vector(op: str, name: str, vector: Tensor, size: int, dtype: torch.dtype) -> None:
    if vector.dim() != 1 or vector.shape[0] != size:
        raise ValueError(f"{op}: {name} must have shape [{size}], got {list(vector.shape)}")
    if vector.dtype != dtype:
        raise ValueError(f"{op}: {name} must be {dtype}, got {vector.dtype}")


def _require_all_or_none(op: str, **vectors: Tensor | None) -> None:
    if len({vector is None for vector in vectors.values()}) > 1:
        first, second, third = vectors
        raise ValueError(
            f"{op}: {first}, {second} and {third} must be given together or not at all"
        )


def conv_stats_shape(
    op: str,
    x: Tensor,
    in_mean: Tensor | None,
    in_scale: Tensor | None,
    in_bias: Tensor | None,
    in_act: str,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    algorithm: str = "direct",
) -> Shape:
    """Checks the arguments of ``conv_stats`` and returns y's shape [N, K, OH, OW].

    Raises:
        ValueError: names the argument, what it is and what it has to be.
    """
    checks.require_input(op, x, groups)
    if weight.dim() != 4 or 0 in weight.shape:
        raise ValueError(
            f"{op}: weight must be 4-D [K, C/groups, R, S], no size 0, "
            f"got shape {list(weight.shape)}"
        )
    if weight.dtype not in checks.FLOAT_DTYPES or (weight.dtype == torch.float64) != (
        x.dtype == torch.float64
    ):
        raise ValueError(
            f"{op}: weight must be float32, bfloat16 or float16, or float64 with a float64 x, "
            f"got {weight.dtype} for x {x.dtype}"
        )
    checks.require_groups(op, "output", weight.shape[0], groups)
    if weight.shape[1] * groups != x.shape[1]:
        raise ValueError(
            f"{op}: weight must have {x.shape[1]}/{groups} input channels a group, those of x "
            f"over groups, got shape {list(weight.shape)}"
        )
    _require_same_device(op, x, weight=weight)
    _require_ints(op, "stride", stride, 2, 1)
    _require_ints(op, "padding", padding, 4, 0)
    _require_ints(op, "dilation", dilation, 2, 1)
    _require_all_or_none(op, in_mean=in_mean, in_scale=in_scale, in_bias=in_bias)
    require_channels(op, x, in_mean=in_mean, in_scale=in_scale, in_bias=in_bias)
    require_activation(op, in_act)
    checks.require_algorithm(op, weight, groups, algorithm)
    if algorithm == "winograd" and {*stride, *dilation} != {1}:
        raise ValueError(
            f"{op}: algorithm 'winograd' needs stride and dilation 1, got stride {tuple(stride)} "
            f"and dilation {tuple(dilation)}"
        )
    kernel_size = weight.shape[2:]
    height, width = checks.conv_output_size(op, x.shape[2:], kernel_size, stride, padding, dilation)
    return x.shape[0], weight.shape[0], height, width


def output_like_check(op: str, shape: Shape, like: Tensor, **tensors: Tensor) -> None:
    """Checks tensors of the output's shape, and of the dtype and device of ``like``.

    Raises:
        ValueError: names the argument, what it is and what it has to be.
    """
    _require_image(op, "the output", shape, like, tensors)


def like_check(op: str, like: Tensor, whose: str, **tensors: Tensor) -> None:
    """Checks tensors of the shape, dtype and device of ``like``, the argument called ``whose``.

    Raises:
        ValueError: names the argument, what it is and what it has to be.
    """
    _require_image(op, whose, tuple(like.shape), like, tensors)


def _require_image(
    op: str, whose: str, shape: Sequence[int], like: Tensor, tensors: Mapping[str, Tensor]
) -> None:
    for name, tensor in tensors.items():
        if tensor.dim() != 4 or any(a != b for a, b in zip(tensor.shape, shape, strict=True)):
            raise ValueError(
                f"{op}: {name} must have {whose}'s shape {list(shape)}, got {list(tensor.shape)}"
            )
        if tensor.dtype != like.dtype:
            raise ValueError(f"{op}: {name} must be {like.dtype}, got {tensor.dtype}")
    _require_same_device(op, like, **tensors)


def affine_add_act_check(
    op: str,
    y: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    res_mean: Tensor | None,
    res_scale: Tensor | None,
    res_bias: Tensor | None,
    act: str,
) -> None:
    """Checks the arguments of ``affine_add_act``.

    Raises:
        ValueError: names the argument, what it is and what it has to be.
    """
    if y.dim() != 4:
        raise ValueError(f"{op}: y must be 4-D [N, C, H, W], got shape {list(y.shape)}")
    if y.dtype not in checks.FLOAT_DTYPES:
        raise ValueError(f"{op}: y must be float32, bfloat16, float16 or float64, got {y.dtype}")
    require_channels(op, y, mean=mean, scale=scale, bias=bias)
    _require_all_or_none(op, res_mean=res_mean, res_scale=res_scale, res_bias=res_bias)
    require_channels(op, y, res_mean=res_mean, res_scale=res_scale, res_bias=res_bias)
    require_activation(op, act)
    if residual is not None:
        output_like_check(op, tuple(y.shape), y, residual=residual)
    elif res_mean is not None:
        raise ValueError(f"{op}: res_mean needs a residual")
