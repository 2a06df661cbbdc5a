"""Joins bottlenecks that follow each other in a frozen graph into one operator, and parts them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx

from ..fx.names import FUSED
from ..schema.chain import ChainBlock, chain_blocks
from ..weights.packing import first_number
from .units import sole_user

_BLOCK = torch.ops.fastres.grouped_bottleneck.default


def chain_bottlenecks(graph: fx.Graph, constants: dict[str, Tensor], first: int) -> None:
    """Puts a ``bottleneck_chain`` in the place of bottlenecks of which each feeds the next alone.

    Only on the CPU: on a GPU a packed weight is known by the tensor that it is, and slices are not.

    Args:
        graph: a fused graph; rewritten in place.
        constants: what it reads, by name; those of chains are added, those that were joined and are
            read no more are taken out.
        first: its ``first_number``.
    """
    if any(tensor.device.type != "cpu" for tensor in constants.values()):
        return
    for index, chain in enumerate(find_chains(graph, _BLOCK), first):
        _join(graph, constants, chain, f"_chain_packed_{index}", f"_chain_shift_{index}")
    read = {node.target for node in graph.nodes if node.op == "get_attr"}
    for name in constants.keys() - read:
        del constants[name]


def find_chains(graph: fx.Graph, block: Any) -> list[list[fx.Node]]:
    """Calls of one operator of bottlenecks, two at least, of which each feeds the next alone.

    Only those with nothing but reads of constants between them, and with one activation, which is
    the operator's last argument.
    """
    chains: list[list[fx.Node]] = []
    current: list[fx.Node] = []
    for node in graph.nodes:
        if node.op == "get_attr":
            continue
        if node.target is not block:
            current = []
        elif current and _continues(current[-1], node):
            current.append(node)
        else:
            current = [node]
            chains.append(current)
    return [chain for chain in chains if len(chain) > 1]


def _continues(last: fx.Node, node: fx.Node) -> bool:
    feeds = node.args[0] is last and sole_user(last) is node
    return feeds and str(node.args[-1]) == str(last.args[-1])


def _join(
    graph: fx.Graph,
    constants: dict[str, Tensor],
    chain: list[fx.Node],
    packed_name: str,
    shift_name: str,
) -> None:
    packed: list[Tensor] = []
    shifts: list[Tensor] = []
    geometry: tuple[list[int], ...] = ([], [], [], [])  # convs, stride, dilation, groups
    reads: list[fx.Node] = []
    for block in chain:
        _, *operands, stride, dilation, groups, act = block.args
        there = [node for node in operands if isinstance(node, fx.Node)]
        packed += [constants[str(node.target)] for node in there[::2]]
        shifts += [constants[str(node.target)] for node in there[1::2]]
        for values, more in zip(
            geometry, ([len(there) // 2], stride, dilation, [groups]), strict=True
        ):
            values.extend(more)  # type: ignore[arg-type]
        reads += there
    constants[packed_name] = torch.ops.fastres.join_packed(packed)
    constants[shift_name] = torch.cat(shifts)
    with graph.inserting_before(chain[-1]):
        joined = graph.call_function(
            torch.ops.fastres.bottleneck_chain.default,
            (
                chain[0].args[0],
                *(graph.create_node("get_attr", name) for name in (packed_name, shift_name)),
                *([one.numel() for one in packed], [one.numel() for one in shifts]),
                *(*geometry, act),
            ),
        )
    joined.meta[FUSED] = "bottleneck_chain"
    replace_chain(graph, chain, joined)
    for node in reads:
        if not node.users:
            graph.erase_node(node)


def replace_chain(graph: fx.Graph, chain: list[fx.Node], joined: fx.Node) -> None:
    """Puts ``joined`` in the place of the last block's value, and takes all blocks out."""
    chain[-1].replace_all_uses_with(joined)
    for node in reversed(chain):
        graph.erase_node(node)


def part_chains(frozen: fx.GraphModule) -> None:
    """Puts the bottlenecks back, in place, with constants of their own (``_packed_i``)."""
    graph = frozen.graph
    free = count(first_number(graph))
    for node in list(graph.nodes):
        if node.target is not torch.ops.fastres.bottleneck_chain:
            continue
        x, *joined, act = node.args
        packed, shift = (frozen.get_buffer(name.target) for name in joined[:2])
        with graph.inserting_before(node):
            for block in chain_blocks(packed, shift, *joined[2:]):
                operands = _own_constants(frozen, block, free)
                geometry = (list(block.stride), list(block.dilation), block.groups)
                arguments = (x, *operands, *geometry, act)
                x = graph.call_function(torch.ops.fastres.grouped_bottleneck, arguments)
        node.replace_all_uses_with(x)
        for old in (node, *joined[:2]):
            graph.erase_node(old)


def _own_constants(
    frozen: fx.GraphModule, block: ChainBlock, free: Iterator[int]
) -> list[fx.Node | None]:
    reads: list[fx.Node | None] = []
    for packed, shift in zip(block.constants[::2], block.constants[1::2], strict=True):
        index = next(free)
        for name, values in (("packed", packed), ("shift", shift)):
            if values is None:
                reads.append(None)
                continue
            frozen.register_buffer(f"_{name}_{index}", values.clone())
            reads.append(frozen.graph.create_node("get_attr", f"_{name}_{index}"))
    return reads
