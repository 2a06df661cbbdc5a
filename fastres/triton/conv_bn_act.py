"""conv_bn_act: the implicit GEMM with an epilogue."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import reference
from ..schema import checks
from .coverage import otherwise
from .fprop import Geometry, fprop
from .operands import packed_operand


@otherwise(reference.conv_bn_act)
def conv_bn_act(
    x: Tensor,
    packed: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    act: str,
    act_slope: float,
) -> Tensor:
    """``act(conv(x) + shift + residual)``, see ``reference.conv_bn_act``."""
    shape = checks.conv_bn_act_shape(
        x, packed, shift, residual, kernel_size, stride, padding, dilation, groups, act,
        read_packed=True,
    )  # fmt: skip
    return fprop(
        x,
        packed_operand(packed, x.dtype),
        Geometry(stride, padding, dilation),
        shape,
        shift=shift,
        residual=residual,
        act=act,
        act_slope=act_slope,
    )
