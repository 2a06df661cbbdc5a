"""``bottleneck_chain``: several ``grouped_bottleneck``, called once.

A block of a small image takes less than a millisecond. To come back to Python after each costs some
hundredths of that, while all threads but one wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _checks, reference
from ._arguments import BYTES, IntOrPair, check_input, check_tensor, pair
from ._autocast import register_autocast
from ._chain import run_chain
from ._onnx import refuse_onnx_export

_OPS = torch.ops.fastres
_OP = "bottleneck_chain"


def bottleneck_chain(
    x: Tensor,
    packed: Sequence[Tensor],
    shift: Sequence[Tensor],
    *,
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
            shortcut's convolution, as ``grouped_bottleneck`` takes them.
        shift: as many, [K] each, float32 (float64 for a float64 x).
        convs: of each block how many of these it has: 3, or 4 with one in the shortcut.
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
    device, shift_dtypes = check_input(_OP, x)
    for name, tensors, dtypes in (("packed", packed, BYTES), ("shift", shift, shift_dtypes)):
        for index, tensor in enumerate(tensors):
            check_tensor(_OP, f"{name}[{index}]", tensor, dtypes, device)
    ones = [1] * len(convs)
    kernel = (reference if x.dtype == torch.float64 else _OPS).bottleneck_chain
    return kernel(
        x,
        list(packed),
        list(shift),
        list(convs),
        [step for value in stride or ones for step in pair("stride", value)],
        [step for value in dilation or ones for step in pair("dilation", value)],
        list(groups or ones),
        act,
    )


def _empty_block(x: Tensor, *arguments: Any) -> Tensor:
    n, c, h, w = _checks.grouped_bottleneck_shape(x, *arguments, read_packed=False)
    return x.new_empty_strided((n, c, h, w), (h * w * c, 1, w * c, c))


@torch.library.register_fake("fastres::bottleneck_chain")
def _bottleneck_chain_fake(x: Tensor, *arguments: Any) -> Tensor:
    refuse_onnx_export(_OP)
    return run_chain(_empty_block, x, *arguments)


def _bottleneck_chain_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, shift, *ctx.config = inputs
    ctx.save_for_backward(x, *packed, *shift)


def _bottleneck_chain_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Computes the blocks, whose inputs the forward did not store, once more one by one."""
    x, *tensors = ctx.saved_tensors
    packed, shift = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
    needs_x, _, needs_shift, *_ = ctx.needs_input_grad
    needs_shift = needs_shift or [False] * len(shift)
    inputs = [x] * needs_x + [s for s, need in zip(shift, needs_shift, strict=True) if need]
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        y = run_chain(_OPS.grouped_bottleneck, x, packed, shift, *ctx.config)
    grads = iter(torch.autograd.grad(y, inputs, grad, create_graph=again))
    grad_x = next(grads) if needs_x else None
    grad_shift = [next(grads) if need else None for need in needs_shift]
    return grad_x, [None] * len(packed), grad_shift, *[None] * len(ctx.config)


torch.library.register_autograd(
    "fastres::bottleneck_chain",
    _bottleneck_chain_backward,
    setup_context=_bottleneck_chain_setup,
)
register_autocast(_OP, (0,))  # x


@torch.library.register_vmap("fastres::bottleneck_chain")
def _bottleneck_chain_vmap(
    info: Any, in_dims: Sequence[Any], *arguments: Any
) -> tuple[Tensor, int]:
    """One call after the other, as torch does where no operand is a list."""

    def of(index: int, dims: Any, value: Any) -> Any:
        if isinstance(dims, (tuple, list)):
            return [of(index, dim, one) for dim, one in zip(dims, value, strict=True)]
        return value if dims is None else value.select(dims, index)

    calls = (map(of, [i] * len(arguments), in_dims, arguments) for i in range(info.batch_size))
    return torch.stack([_OPS.bottleneck_chain(*call) for call in calls]), 0
