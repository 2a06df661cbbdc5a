"""The gradient of a convolution's output, formed from those of conv_stats' results on loading."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .tiles import load_channels, narrow, widen


class OutputGradient(NamedTuple):
    """The gradient of a convolution's output, as kernels take it.

    ``grad_y * grad_scale + grad_mean / pixels + 2 * grad_m2 * (y - mean)``
    """

    grad_y: Tensor
    y: Tensor | None
    """None where it does not count, and so ``mean`` and ``grad_m2``."""
    mean: Tensor | None
    grad_scale: Tensor | None
    grad_mean: Tensor | None
    grad_m2: Tensor | None

    def strides(self) -> tuple[int, ...]:
        """Of grad_y and of y."""
        return (*self.grad_y.stride(), *((0, 0, 0, 0) if self.y is None else self.y.stride()))


def output_gradient(
    grad_y: Tensor,
    y: Tensor,
    mean: Tensor,
    grad_scale: Tensor | None,
    grad_mean: Tensor | None,
    grad_m2: Tensor | None,
) -> OutputGradient:
    """What has to be read of these tensors, as conv_stats_backward got them."""
    if grad_m2 is None:
        return OutputGradient(grad_y, None, None, grad_scale, grad_mean, None)
    return OutputGradient(grad_y, y, mean, grad_scale, grad_mean, grad_m2)


@triton.jit
def load_output_gradient(
    grad_y, y, mean, grad_scale, grad_mean, grad_m2, image, oh, ow, k, inside, valid, pixels,
    g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w,
):  # fmt: skip
    """A tile [pixels, output channels], 0 where it is not ``inside``.

    ``image`` [pixels] int64, ``oh`` and ``ow`` [pixels, 1] or [pixels, channels], ``k`` [channels].
    """
    at = (image * g_n)[:, None] + oh * g_h + ow * g_w + (k * g_c)[None, :]
    tile = tl.load(grad_y + at, mask=inside, other=0)
    if grad_scale is not None or grad_mean is not None or grad_m2 is not None:
        value = widen(tile)
        if grad_scale is not None:
            value *= load_channels(grad_scale, k, valid)[None, :]
        if grad_mean is not None:
            value += (load_channels(grad_mean, k, valid) / pixels)[None, :]
        if grad_m2 is not None:
            at = (image * y_n)[:, None] + oh * y_h + ow * y_w + (k * y_c)[None, :]
            deviation = widen(tl.load(y + at, mask=inside, other=0))
            deviation -= load_channels(mean, k, valid)[None, :]
            value += (2 * load_channels(grad_m2, k, valid))[None, :] * deviation
        tile = narrow(tl.where(inside, value, 0.0), tile.dtype)
    return tile
