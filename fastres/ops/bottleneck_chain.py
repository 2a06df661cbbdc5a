"""``bottleneck_chain``, several ``grouped_bottleneck`` called once, and ``join_packed`` for it.

A block of a small image takes less than a millisecond, and coming back to Python after each takes
some hundredths of one, while all threads but one wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..schema import checks
from ..schema.chain import OP, joined_bytes, run_chain
from .arguments import BYTES, IntOrPair, check_input, check_tensor, pair
from .autocast import register_autocast
from .autograd import register_autograd
from .empty import empty_channels_last
from .onnx import refuse_onnx_export

_OPS = torch.ops.fastres


def join_packed(packed: Sequence[Tensor]) -> Tensor:
    """Packed weights in one tensor, as ``bottleneck_chain`` takes them.

    Args:
        packed: what ``pack_conv_weight`` returned, on one device.

    Returns:
        1-D uint8 tensor, in which each begins at a multiple of 64 bytes.

    Raises:
        ValueError: no tensor, or one that ``pack_conv_weight`` did not make.
        TypeError: something is no uint8 tensor.
    """
    packed = list(packed)
    for index, tensor in enumerate(packed):
        check_tensor("join_packed", f"packed[{index}]", tensor, BYTES, packed[0].device)
    return _OPS.join_packed(packed)


@torch.library.register_fake("fastres::join_packed")
def _join_packed_fake(packed: Sequence[Tensor]) -> Tensor:
    return packed[0].new_empty(sum(joined_bytes(tensor.numel()) for tensor in packed))


def bottleneck_chain(
    x: Tensor,
    packed: Tensor,
    shift: Tensor,
    *,
    sizes: Sequence[int],
    channels: Sequence[int],
    convs: Sequence[int],
    stride: Sequence[IntOrPair] | None = None,
    dilation: Sequence[IntOrPair] | None = None,
    groups: Sequence[int] | None = None,
    act: str = "relu",
) -> Tensor:
    """Bottlenecks one after the other, each of what the one before returns.

    Args:
        x: [N, C, H, W], float32, bfloat16, float16 or float64; any strides.
        packed: of each block in turn the weights of conv1, conv2, conv3 and, where it has one, the
            shortcut's convolution, as ``grouped_bottleneck`` takes them; joined by
            ``join_packed``.
        shift: the shifts of all these convolutions one after the other, float32 (float64 for a
            float64 x).
        sizes: of each convolution the bytes of its packed weight.
        channels: of each convolution the output channels.
        convs: of each block how many convolutions it has: 3, or 4 with one in the shortcut.
        stride: of each block, int or (vertical, horizontal); None for 1 everywhere.
        dilation: of each block, int or (vertical, horizontal); None for 1 everywhere.
        groups: of each block's conv2; None for 1 everywhere.
        act: of all blocks: "none", "relu", "relu6", "silu" or "leaky_relu" (slope 0.01).

    Returns:
        [N, K3, OH, OW] of the last block in the dtype of x, with dense channels_last strides: the
        bits that the operators give one after the other. Backward computes the blocks again.

    Raises:
        ValueError: shapes, devices or values that do not fit; names the argument, and the block
            counted from 0.
        TypeError: a dtype other than these; names the argument.
    """
    device, shift_dtypes = check_input(OP, x)
    check_tensor(OP, "packed", packed, BYTES, device)
    check_tensor(OP, "shift", shift, shift_dtypes, device)
    ones = [1] * len(convs)
    kernel = (reference if x.dtype == torch.float64 else _OPS).bottleneck_chain
    return kernel(
        x,
        packed,
        shift,
        list(sizes),
        list(channels),
        list(convs),
        [step for value in stride or ones for step in pair("stride", value)],
        [step for value in dilation or ones for step in pair("dilation", value)],
        list(groups or ones),
        act,
    )


def _empty_block(x: Tensor, *arguments: Any) -> Tensor:
    shape = checks.grouped_bottleneck_shape(x, *arguments, read_packed=False)
    return empty_channels_last(x, shape)


@torch.library.register_fake("fastres::bottleneck_chain")
def _bottleneck_chain_fake(x: Tensor, *arguments: Any) -> Tensor:
    refuse_onnx_export(OP)
    return run_chain(_empty_block, x, *arguments)


def _bottleneck_chain_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, shift, *ctx.config = inputs
    ctx.save_for_backward(x, packed, shift)


def _bottleneck_chain_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Computes the blocks, whose inputs the forward did not store, once more one by one."""
    x, packed, shift = ctx.saved_tensors
    needs_x, _, needs_shift, *_ = ctx.needs_input_grad
    wanted = [x] * needs_x + [shift] * needs_shift
    again = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        y = run_chain(_OPS.grouped_bottleneck, x, packed, shift, *ctx.config)
        grads = iter(torch.autograd.grad(y, wanted, grad, create_graph=again))
    grad_x = next(grads) if needs_x else None
    grad_shift = next(grads) if needs_shift else None
    return grad_x, None, grad_shift, *[None] * len(ctx.config)


register_autograd(
    "bottleneck_chain",
    _bottleneck_chain_backward,
    setup_context=_bottleneck_chain_setup,
)
register_autocast(OP, (0,))  # x
