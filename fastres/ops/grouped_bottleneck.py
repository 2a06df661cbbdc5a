"""``grouped_bottleneck``: a whole bottleneck, depth-first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..reference.gradients import act_grad, bottleneck_convs, needs_preactivation, shift_grad
from ..schema import checks
from .arguments import (
    BYTES,
    IntOrPair,
    check_input,
    check_tensor,
    pair,
)
from .autocast import register_autocast
from .autograd import register_autograd
from .empty import empty_channels_last
from .onnx import refuse_onnx_export

_OPS = torch.ops.fastres


def grouped_bottleneck(
    x: Tensor,
    packed1: Tensor,
    shift1: Tensor,
    packed2: Tensor,
    shift2: Tensor,
    packed3: Tensor,
    shift3: Tensor,
    packed_down: Tensor | None = None,
    shift_down: Tensor | None = None,
    *,
    stride: IntOrPair = 1,
    dilation: IntOrPair = 1,
    groups: int = 1,
    act: str = "relu",
) -> Tensor:
    """A whole bottleneck, ``act(conv3(act(conv2(act(conv1(x))))) + shortcut)``, depth-first.

    conv1 and conv3 are 1x1, conv2 is 3x3 with padding=dilation, and the shortcut is x or a 1x1
    convolution of x (He et al., arXiv:1512.03385; with groups, Xie et al., arXiv:1611.05431). Both
    strides are where torchvision has them: in conv2 and in the shortcut.

    Args:
        x: [N, C, H, W], float32, bfloat16, float16 or float64; any strides.
        packed1: conv1's weight [K1, C, 1, 1], of ``pack_conv_weight``.
        shift1: [K1], float32 (float64 for a float64 x).
        packed2: conv2's weight [K2, K1/groups, 3, 3].
        shift2: [K2].
        packed3: conv3's weight [K3, K2, 1, 1].
        shift3: [K3].
        packed_down: the shortcut's weight [K3, C, 1, 1], or None for x itself.
        shift_down: [K3], with ``packed_down``.
        stride: int or (vertical, horizontal).
        dilation: int or (vertical, horizontal).
        groups: of conv2.
        act: "none", "relu", "relu6", "silu" or "leaky_relu" (slope 0.01).

    Returns:
        [N, K3, OH, OW] in the dtype of x, with dense channels_last strides. Arithmetic is float32
        (float64 for float64), rounded once.

    Raises:
        ValueError: shapes, devices or values that do not fit; names the argument.
        TypeError: a dtype other than these; names the argument.
    """
    op = "grouped_bottleneck"
    device, shift_dtypes = check_input(op, x)
    for name, packed, shift in (
        ("1", packed1, shift1),
        ("2", packed2, shift2),
        ("3", packed3, shift3),
        ("_down", packed_down, shift_down),
    ):
        if packed is not None:
            check_tensor(op, f"packed{name}", packed, BYTES, device)
        if shift is not None:
            check_tensor(op, f"shift{name}", shift, shift_dtypes, device)
    kernel = (reference if x.dtype == torch.float64 else _OPS).grouped_bottleneck
    return kernel(
        x,
        packed1,
        shift1,
        packed2,
        shift2,
        packed3,
        shift3,
        packed_down,
        shift_down,
        pair("stride", stride),
        pair("dilation", dilation),
        groups,
        act,
    )


@torch.library.register_fake("fastres::grouped_bottleneck")
def _grouped_bottleneck_fake(x: Tensor, *args: Any) -> Tensor:
    refuse_onnx_export("grouped_bottleneck")
    return empty_channels_last(x, checks.grouped_bottleneck_shape(x, *args, read_packed=False))


def _grouped_bottleneck_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.config = inputs[9:]
    ctx.save_for_backward(*inputs[:9], output)


def _grouped_bottleneck_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Recomputes the inner activations, which the forward did not store."""
    x, *constants, out = ctx.saved_tensors
    act, slope, dtype = ctx.config[-1], 0.01, x.dtype
    conv1, conv2, conv3, down = bottleneck_convs(constants, ctx.config)
    wide = reference.compute_dtype(x)
    x, value3 = x.to(wide), out.to(wide)
    h1, value1 = conv1.forward_for_grad(x, None, act, slope)
    h2, value2 = conv2.forward_for_grad(h1, None, act, slope)
    if needs_preactivation(act, slope):
        shortcut = x if down is None else down.forward(x, None, "none", slope)
        _, value3 = conv3.forward_for_grad(h2, shortcut, act, slope)

    g3 = act_grad(grad.to(wide), value3, act, slope)
    g2 = act_grad(conv3.input_grad(g3, h2.shape), value2, act, slope)
    g1 = act_grad(conv2.input_grad(g2, h1.shape), value1, act, slope)
    grads: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    if ctx.needs_input_grad[0]:
        direct = g3 if down is None else down.input_grad(g3, x.shape)
        grads[0] = (conv1.input_grad(g1, x.shape) + direct).to(dtype)
    for position, g in ((2, g1), (4, g2), (6, g3), (8, g3)):  # shift1, 2, 3 and shift_down
        if ctx.needs_input_grad[position]:
            grads[position] = shift_grad(g)
    return tuple(grads)


register_autograd(
    "grouped_bottleneck",
    _grouped_bottleneck_backward,
    setup_context=_grouped_bottleneck_setup,
)
register_autocast("grouped_bottleneck", (0,))  # x
