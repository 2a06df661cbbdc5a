"""The arguments of chains, taken apart, for blocks that somebody else computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from torch import Tensor

from .packed_weight import HEADER_BYTES

OP = "bottleneck_chain"
LIVE_OP = "live_bottleneck_chain"


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


class LiveChainBlock(NamedTuple):
    """The same of a live chain and ``live_bottleneck``."""

    constants: list[Tensor | None]
    """weight1, scale1, shift1, weight2, ..., shift_down."""
    stride: Sequence[int]
    dilation: Sequence[int]
    groups: int
    algorithm: str


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
    return _run(OP, "grouped_bottleneck", block, x, chain_blocks(*chain), act)


def run_live_chain(block: Callable[..., Tensor], x: Tensor, *arguments: Any) -> Tensor:
    """``run_chain`` with ``live_bottleneck``'s arguments and ``reference.live_bottleneck_chain``'s.

    Raises:
        ValueError: what ``live_chain_blocks`` or ``block`` raise; names the block.
    """
    *chain, act = arguments
    return _run(LIVE_OP, "live_bottleneck", block, x, live_chain_blocks(*chain), act)


def _run(
    op: str,
    block_op: str,
    block: Callable[..., Tensor],
    x: Tensor,
    blocks: Iterable[ChainBlock | LiveChainBlock],
    act: str,
) -> Tensor:
    for index, (constants, *geometry) in enumerate(blocks):
        try:
            x = block(x, *constants, *geometry, act)
        except ValueError as error:
            message = str(error).removeprefix(f"{block_op}: ")
            raise ValueError(f"{op}: block {index}: {message}") from None
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
    _check_counts(OP, convs, {"sizes": sizes, "channels": channels}, {}, stride, dilation, groups)
    for name, values in (("sizes", sizes), ("channels", channels)):
        if min(values) <= 0:
            raise ValueError(f"{OP}: {name} must be positive, got {min(values)}")
    expected = sum(map(joined_bytes, sizes))
    if tuple(packed.shape) != (expected,):
        raise ValueError(
            f"{OP}: packed must be what join_packed returned (1-D uint8 of {expected} bytes, by "
            f"sizes), got {packed.dtype} of shape {list(packed.shape)}"
        )
    _check_vector(OP, "shift", shift, sum(channels))
    packed_at = list(accumulate(map(joined_bytes, sizes), initial=0))
    shift_at = list(accumulate(channels, initial=0))
    for index, convs_of_block in enumerate(_shares(convs)):
        constants: list[Tensor | None] = []
        for i in convs_of_block:
            constants.append(packed[packed_at[i] : packed_at[i] + sizes[i]])
            constants.append(shift[shift_at[i] : shift_at[i + 1]])
        constants += [None] * (8 - len(constants))
        two = slice(2 * index, 2 * index + 2)
        yield ChainBlock(constants, stride[two], dilation[two], groups[index])


def live_chain_blocks(
    weights: Sequence[Tensor],
    scale: Tensor,
    shift: Tensor,
    algorithms: Sequence[str],
    convs: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: Sequence[int],
) -> Iterator[LiveChainBlock]:
    """The blocks of a live chain; arguments as for ``reference.live_bottleneck_chain``.

    Raises:
        ValueError: a list or a tensor of another length than the others ask for.
    """
    _check_counts(
        LIVE_OP, convs, {"weights": weights}, {"algorithms": algorithms}, stride, dilation, groups
    )
    for i, weight in enumerate(weights):
        if weight.dim() != 4:
            raise ValueError(
                f"{LIVE_OP}: weights[{i}] must be 4-D [K, C/groups, R, S], got shape "
                f"{list(weight.shape)}"
            )
    at = list(accumulate((weight.shape[0] for weight in weights), initial=0))
    _check_vector(LIVE_OP, "scale", scale, at[-1])
    _check_vector(LIVE_OP, "shift", shift, at[-1])
    for index, convs_of_block in enumerate(_shares(convs)):
        constants: list[Tensor | None] = []
        for i in convs_of_block:
            part = slice(at[i], at[i + 1])
            constants += [weights[i], scale[part], shift[part]]
        constants += [None] * (12 - len(constants))
        two = slice(2 * index, 2 * index + 2)
        yield LiveChainBlock(
            constants, stride[two], dilation[two], groups[index], algorithms[index]
        )


def _shares(convs: Sequence[int]) -> Iterator[range]:
    """Which convolutions each block has."""
    ends = accumulate(convs)
    return (range(end - count, end) for count, end in zip(convs, ends, strict=True))


def _check_counts(
    op: str,
    convs: Sequence[int],
    by_conv: dict[str, Sequence[Any]],
    by_block: dict[str, Sequence[Any]],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: Sequence[int],
) -> None:
    if not convs:
        raise ValueError(f"{op}: convs must have at least one element, got none")
    for count in convs:
        if count not in (3, 4):
            raise ValueError(f"{op}: convs must be 3 or 4 of each block, got {count}")
    blocks = len(convs)
    for lists, expected in (
        (by_conv, sum(convs)),
        (by_block, blocks),
        ({"stride": stride, "dilation": dilation}, 2 * blocks),
        ({"groups": groups}, blocks),
    ):
        for name, values in lists.items():
            if len(values) != expected:
                raise ValueError(f"{op}: {name} must have {expected} elements, got {len(values)}")


def _check_vector(op: str, name: str, values: Tensor, count: int) -> None:
    if tuple(values.shape) != (count,):
        raise ValueError(f"{op}: {name} must have shape [{count}], got {list(values.shape)}")
