"""live_bottleneck: packs the weights, which are little beside the block, and runs it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _checks, reference
from .coverage import otherwise
from .grouped_bottleneck import grouped_bottleneck
from .pack_conv_weight import pack_conv_weight


@otherwise(reference.live_bottleneck)
def live_bottleneck(
    x: Tensor,
    weight1: Tensor,
    scale1: Tensor | None,
    shift1: Tensor,
    weight2: Tensor,
    scale2: Tensor | None,
    shift2: Tensor,
    weight3: Tensor,
    scale3: Tensor | None,
    shift3: Tensor,
    weight_down: Tensor | None,
    scale_down: Tensor | None,
    shift_down: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    algorithm: str,
    act: str,
) -> Tensor:
    """``grouped_bottleneck`` of weights times scales, see ``reference.live_bottleneck``."""
    _checks.live_bottleneck_shape(
        x, weight1, scale1, shift1, weight2, scale2, shift2, weight3, scale3, shift3,
        weight_down, scale_down, shift_down, stride, dilation, groups, algorithm, act,
    )  # fmt: skip
    return grouped_bottleneck(
        x,
        pack_conv_weight(weight1, scale1, 1),
        shift1,
        pack_conv_weight(weight2, scale2, groups, algorithm),
        shift2,
        pack_conv_weight(weight3, scale3, 1),
        shift3,
        None if weight_down is None else pack_conv_weight(weight_down, scale_down, 1),
        shift_down,
        stride,
        dilation,
        groups,
        act,
    )
