"""Gradients of the inference operators in plain PyTorch, themselves differentiable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from . import packing
from .inference import apply_act


@torch.library.custom_op("fastres::unpack_conv_weight", mutates_args=())
def unpack_conv_weight(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The weight in ``packed``, which is of this shape [K, C/groups, R, S].

    An operator of its own because it reads ``packed``, which a traced backward cannot do.
    """
    return packing.unpack_conv_weight(packed)


@unpack_conv_weight.register_fake
def _(packed: Tensor, shape: Sequence[int]) -> Tensor:
    return packed.new_empty(shape, dtype=torch.float32)


class Conv(NamedTuple):
    """A convolution with packed weights: its constants and its geometry."""

    packed: Tensor
    shift: Tensor
    kernel_size: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    def forward(self, x: Tensor, residual: Tensor | None, act: str, act_slope: float) -> Tensor:
        """conv_bn_act with these constants."""
        packed, shift, *geometry = self
        return torch.ops.fastres.conv_bn_act(x, packed, shift, residual, *geometry, act, act_slope)

    def forward_for_grad(
        self, x: Tensor, residual: Tensor | None, act: str, act_slope: float
    ) -> tuple[Tensor, Tensor]:
        """conv_bn_act, and the value that ``act_grad`` wants."""
        if not needs_preactivation(act, act_slope):
            out = self.forward(x, residual, act, act_slope)
            return out, out
        value = self.forward(x, residual, "none", act_slope)
        return apply_act(value, act, act_slope), value

    def input_grad(self, grad: Tensor, size: Sequence[int]) -> Tensor:
        """Gradient of an input of this size, from that of the convolution's output."""
        n, c, h, w = size
        shape = (grad.shape[1], c // self.groups, *self.kernel_size)
        weight = unpack_conv_weight(self.packed, shape).to(grad.dtype)
        top, bottom, left, right = self.padding
        padding = (top, left) if top == bottom and left == right else (0, 0)
        if padding != (0, 0) or not any(self.padding):
            return conv2d_input(
                size, weight, grad, self.stride, padding, self.dilation, self.groups
            )
        padded = (n, c, h + top + bottom, w + left + right)
        out = conv2d_input(padded, weight, grad, self.stride, 0, self.dilation, self.groups)
        return out[:, :, top : top + h, left : left + w]


def bottleneck_convs(
    tensors: Sequence[Any], config: Sequence[Any]
) -> tuple[Conv, Conv, Conv, Conv | None]:
    """conv1, conv2, conv3 and the shortcut's, which may be None."""
    packed1, shift1, packed2, shift2, packed3, shift3, packed_down, shift_down = tensors
    stride, dilation, groups, _ = config
    padding = (dilation[0], dilation[0], dilation[1], dilation[1])
    point = ((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    down = None
    if packed_down is not None:
        down = Conv(packed_down, shift_down, (1, 1), stride, (0, 0, 0, 0), (1, 1), 1)
    return (
        Conv(packed1, shift1, *point),
        Conv(packed2, shift2, (3, 3), stride, padding, dilation, groups),
        Conv(packed3, shift3, *point),
        down,
    )


def needs_preactivation(act: str, act_slope: float) -> bool:
    """Whether the activation's output does not tell its derivative."""
    return act == "silu" or (act == "leaky_relu" and act_slope < 0)


def act_grad(grad: Tensor, value: Tensor, act: str, act_slope: float) -> Tensor:
    """Gradient of the activation's input.

    Args:
        grad: gradient of its output.
        value: its input where needs_preactivation says so, otherwise its output.
        act: the activation.
        act_slope: leaky_relu's negative slope.
    """
    aten = torch.ops.aten
    if act == "none":
        return grad
    if act == "relu":
        return aten.threshold_backward(grad, value.detach(), 0)
    if act == "relu6":
        return aten.hardtanh_backward(grad, value.detach(), 0, 6)
    if act == "leaky_relu":
        # The output has the input's sign, except for a negative slope, which gives the input.
        return aten.leaky_relu_backward(grad, value.detach(), act_slope, False)
    sigmoid = value.sigmoid()  # aten.silu_backward cannot be differentiated again
    return grad * sigmoid * (1 + value * (1 - sigmoid))


def shift_grad(grad: Tensor) -> Tensor:
    """Gradient of a per-channel shift."""
    return grad.sum((0, 2, 3))
