"""The arguments of ``bottleneck_chain``, taken apart, for blocks that somebody else computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from torch import Tensor

from ._packed import HEADER_BYTES

OP = "bottleneck_chain"


def joined_bytes(size: int) -> int:
    """What a packed weight of ``size`` bytes takes where it is joined with others."""
    return -(-size // HEADER_BYTES) * HEADER_BYTES


class ChainBlock(NamedTuple):
    """One block of a chain, with ``grouped_bottleneck``'s arguments but x and the activation."""

    constants: list[Tensor | None]
    """packed1, shift1, packed2, ..., shift_down: views of what is joined."""
    stride: Sequence[int]
    dilation: Sequence[int]
    groups: int


def run_chain(block: Callable[..., Tensor], x: Tensor, *arguments: Any) -> Tensor:
    """Blocks one after the other.

    Args:
        block: what a block is computed by, with ``grouped_bottleneck``'s arguments.
        x: this and the others are those of ``reference.bottleneck_chain``.
        arguments: likewise.

    Raises:
        ValueError: what ``chain_blocks`` or ``block`` raise; names the block.
    """
    *chain, act = arguments
    for index, one in enumerate(chain_blocks(*chain)):
        try:
            x = block(x, *one.constants, one.stride, one.dilation, one.groups, act)
        except ValueError as error:
            message = str(error).removeprefix("grouped_bottleneck: ")
            raise ValueError(f"{OP}: block {index}: {message}") from None
    return x


def chain_blocks(
    packed: Tensor,
    shift: Tensor,
    sizes: Sequence[int],
    channels: Sequence[int],
    convs: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: Sequence[int],
) -> Iterator[ChainBlock]:
    """The blocks of a chain; arguments as for ``reference.bottleneck_chain``.

    Raises:
        ValueError: a list or a tensor of another length than the others ask for.
    """
    _check(packed, shift, sizes, channels, convs, stride, dilation, groups)
    packed_at = list(accumulate(map(joined_bytes, sizes), initial=0))
    shift_at = list(accumulate(channels, initial=0))
    conv = 0
    for index, count in enumerate(convs):
        constants: list[Tensor | None] = []
        for i in range(conv, conv + count):
            constants.append(packed[packed_at[i] : packed_at[i] + sizes[i]])
            constants.append(shift[shift_at[i] : shift_at[i + 1]])
        constants += [None] * (8 - len(constants))
        two = slice(2 * index, 2 * index + 2)
        yield ChainBlock(constants, stride[two], dilation[two], groups[index])
        conv += count


def _check(
    packed: Tensor,
    shift: Tensor,
    sizes: Sequence[int],
    channels: Sequence[int],
    convs: Sequence[int],
    *steps_and_groups: Sequence[int],
) -> None:
    if not convs:
        raise ValueError(f"{OP}: convs must have at least one element, got none")
    for count in convs:
        if count not in (3, 4):
            raise ValueError(f"{OP}: convs must be 3 or 4 of each block, got {count}")
    counts = [sum(convs)] * 2 + [2 * len(convs)] * 2 + [len(convs)]
    names = ("sizes", "channels", "stride", "dilation", "groups")
    lists = (sizes, channels, *steps_and_groups)
    for name, values, expected in zip(names, lists, counts, strict=True):
        if len(values) != expected:
            raise ValueError(f"{OP}: {name} must have {expected} elements, got {len(values)}")
    for name, values in (("sizes", sizes), ("channels", channels)):
        if min(values) <= 0:
            raise ValueError(f"{OP}: {name} must be positive, got {min(values)}")
    expected = sum(map(joined_bytes, sizes))
    if tuple(packed.shape) != (expected,):
        raise ValueError(
            f"{OP}: packed must be what join_packed returned (1-D uint8 of {expected} bytes, by "
            f"sizes), got {packed.dtype} of shape {list(packed.shape)}"
        )
    if tuple(shift.shape) != (sum(channels),):
        raise ValueError(f"{OP}: shift must have shape [{sum(channels)}], got {list(shift.shape)}")
