"""grouped_bottleneck: its convolutions one after the other, each with its whole epilogue.

Three launches (four with a shortcut convolution), none for BatchNorm, addition or activation.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _checks, reference
from .coverage import otherwise
from .fprop import Geometry, fprop
from .operands import packed_operand

_POINT = Geometry((1, 1), (0, 0, 0, 0), (1, 1))


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
    n, _, oh, ow = _checks.grouped_bottleneck_shape(
        x, packed1, shift1, packed2, shift2, packed3, shift3, packed_down, shift_down,
        stride, dilation, groups, act, read_packed=True,
    )  # fmt: skip

    def conv(
        x: Tensor,
        packed: Tensor,
        shift: Tensor,
        geometry: Geometry,
        size: Sequence[int],
        act: str,
        residual: Tensor | None = None,
    ) -> Tensor:
        shape = (n, shift.shape[0], *size)
        operand = packed_operand(packed, x.dtype)
        return fprop(
            x, operand, geometry, shape, shift=shift, residual=residual, act=act, act_slope=0.01
        )

    padding = (dilation[0], dilation[0], dilation[1], dilation[1])
    shortcut = x
    if packed_down is not None and shift_down is not None:
        point = Geometry(stride, (0, 0, 0, 0), (1, 1))
        shortcut = conv(x, packed_down, shift_down, point, (oh, ow), "none")
    h = conv(x, packed1, shift1, _POINT, x.shape[2:], act)
    h = conv(h, packed2, shift2, Geometry(stride, padding, dilation), (oh, ow), act)
    return conv(h, packed3, shift3, _POINT, (oh, ow), act, shortcut)
