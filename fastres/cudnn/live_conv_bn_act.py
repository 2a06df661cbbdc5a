"""live_conv_bn_act: scales the weight, which is little beside the convolution, and convolves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..schema import checks
from .convolve import convolve, once_for_all_alike


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
    if x.dtype == torch.float64:
        return reference.live_conv_bn_act(
            x, weight, scale, shift, residual, stride, padding, dilation, groups, algorithm, act,
            act_slope,
        )  # fmt: skip
    once_for_all_alike(
        checks.live_conv_bn_act_shape,
        (x, weight, scale, shift, residual),
        (stride, padding, dilation, groups, algorithm, act),
    )
    geometry = (stride, padding, dilation, groups)
    return convolve(x, scaled(weight, scale, x.dtype), shift, residual, geometry, act, act_slope)


def scaled(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``weight * scale[:, None, None, None]``, rounded to the dtype once."""
    if scale is None:
        return weight.to(dtype)
    out = torch.empty_like(weight, dtype=dtype, memory_format=torch.channels_last)
    return torch.mul(weight, scale[:, None, None, None], out=out)
