"""conv_stats: the implicit GEMM with a prologue, and statistics in two stages."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import reference
from ..schema import training_checks
from .coverage import otherwise
from .fprop import Affine, Geometry, empty_statistics, fprop
from .moments import merge_moments
from .operands import weight_operand


@otherwise(reference.conv_stats)
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
    """Convolution of ``in_act((x - in_mean) * in_scale + in_bias)``, mean and m2 of its output.

    See ``reference.conv_stats``.
    """
    shape = training_checks.conv_stats_shape(
        "conv_stats", x, in_mean, in_scale, in_bias, in_act, weight, stride, padding, dilation,
        groups, algorithm,
    )  # fmt: skip
    operand = weight_operand(weight, groups, x.dtype)
    parts = empty_statistics(x, operand, shape)
    y = fprop(
        x,
        operand,
        Geometry(stride, padding, dilation),
        shape,
        prologue=Affine(in_mean, in_scale, in_bias),
        in_act=in_act,
        act_slope=in_act_slope,
        statistics=parts,
    )
    n, _, oh, ow = shape
    mean, m2 = merge_moments(parts.mean, parts.m2, parts.rows, n * oh * ow)
    return y, mean, m2
