"""``bottleneck_chain`` of blocks that somebody else computes: takes its arguments apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

_OP = "bottleneck_chain"


def run_chain(
    block: Callable[..., Tensor],
    x: Tensor,
    packed: Sequence[Any],
    shift: Sequence[Any],
    convs: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: Sequence[int],
    act: str,
) -> Tensor:
    """Blocks one after the other.

    Args:
        block: what a block is computed by, with ``grouped_bottleneck``'s arguments.
        x: the other arguments are those of ``reference.bottleneck_chain``.
        packed: likewise.
        shift: likewise.
        convs: likewise.
        stride: likewise.
        dilation: likewise.
        groups: likewise.
        act: likewise.

    Raises:
        ValueError: a list of another length than ``convs`` asks for, or what ``block`` raises, with
            the block's index.
    """
    parts = _blocks(packed, shift, convs, stride, dilation, groups)
    for index, (constants, step, distance, count) in enumerate(parts):
        try:
            x = block(x, *constants, step, distance, count, act)
        except ValueError as error:
            message = str(error).removeprefix("grouped_bottleneck: ")
            raise ValueError(f"{_OP}: block {index}: {message}") from None
    return x


def _blocks(
    packed: Sequence[Any],
    shift: Sequence[Any],
    convs: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: Sequence[int],
) -> Iterator[tuple[list[Any], Sequence[int], Sequence[int], int]]:
    """Of each block packed1, shift1, ..., shift_down, and its stride, dilation and groups."""
    if not convs:
        raise ValueError(f"{_OP}: convs must have at least one element, got none")
    for count in convs:
        if count not in (3, 4):
            raise ValueError(f"{_OP}: convs must be 3 or 4 of each block, got {count}")
    for name, values, expected in (
        ("packed", packed, sum(convs)),
        ("shift", shift, sum(convs)),
        ("stride", stride, 2 * len(convs)),
        ("dilation", dilation, 2 * len(convs)),
        ("groups", groups, len(convs)),
    ):
        if len(values) != expected:
            raise ValueError(f"{_OP}: {name} must have {expected} elements, got {len(values)}")
    begin = 0
    for index, count in enumerate(convs):
        constants: list[Any] = []
        for conv in range(begin, begin + count):
            constants += [packed[conv], shift[conv]]
        constants += [None] * (8 - len(constants))
        two = slice(2 * index, 2 * index + 2)
        yield constants, stride[two], dilation[two], groups[index]
        begin += count
