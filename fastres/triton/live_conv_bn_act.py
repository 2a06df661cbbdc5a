"""live_conv_bn_act: packs the weight, which is little beside the convolution, and convolves."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import reference
from ..schema import checks
from .coverage import otherwise
from .fprop import Geometry, fprop
from .operands import weight_operand


@otherwise(reference.live_conv_bn_act)
def live_conv_bn_act(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    algorithm: str,
    act: str,
    act_slope: float,
) -> Tensor:
    """``act(conv(x, weight * scale) + shift + residual)``, see ``reference.live_conv_bn_act``."""
    shape = checks.live_conv_bn_act_shape(
        x, weight, scale, shift, residual, stride, padding, dilation, groups, algorithm, act
    )
    return fprop(
        x,
        weight_operand(weight, groups, x.dtype, scale),
        Geometry(stride, padding, dilation),
        shape,
        shift=shift,
        residual=residual,
        act=act,
        act_slope=act_slope,
    )
