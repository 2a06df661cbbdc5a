"""grouped_bottleneck: its convolutions one after the other, each with its whole epilogue.

Three launches (four with a shortcut convolution), none for BatchNorm, addition or activation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import composed, reference
from ..schema import checks
from .coverage import otherwise
from .fprop import Geometry, fprop
from .operands import packed_operand


@otherwise(reference.grouped_bottleneck)
def grouped_bottleneck(
    x: Tensor,
    packed1: Tensor,
    shift1: Tensor,
    packed2: Tensor,
    shift2: Tensor,
    packed3: Tensor,
    shift3: Tensor,
    packed_down: Tensor | None,
    shift_down: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    act: str,
) -> Tensor:
    """``act(conv3(act(conv2(act(conv1(x))))) + shortcut)``, see ``reference.grouped_bottleneck``.

    Between the convolutions activations are rounded to the dtype of x, as eager PyTorch does.
    """
    checks.grouped_bottleneck_shape(
        x, packed1, shift1, packed2, shift2, packed3, shift3, packed_down, shift_down,
        stride, dilation, groups, act, read_packed=True,
    )  # fmt: skip
    first, third = _layer(packed1, shift1, 1, x.dtype), _layer(packed3, shift3, 1, x.dtype)
    second, down = _layer(packed2, shift2, 3, x.dtype), None
    if packed_down is not None and shift_down is not None:
        down = _layer(packed_down, shift_down, 1, x.dtype)
    return composed.bottleneck((first, second, third), down, x, stride, dilation, groups, act)


def _layer(packed: Tensor, shift: Tensor, kernel: int, dtype: torch.dtype) -> composed.Layer:
    operand = packed_operand(packed, dtype)

    def run(x: Tensor, residual: Tensor | None, geometry: composed.Geometry, act: str) -> Tensor:
        options = geometry[:3]
        size = checks.conv_output_size(
            "grouped_bottleneck", x.shape[2:], (kernel, kernel), *options
        )
        return fprop(
            x,
            operand,
            Geometry(*options),
            (x.shape[0], shift.shape[0], *size),
            shift=shift,
            residual=residual,
            act=act,
            act_slope=composed.LEAKY_SLOPE,
        )

    return run
