"""Joins bottlenecks that follow each other in a fused graph into one operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .fx.names import FUSED
from .units import sole_user

_BLOCK = torch.ops.fastres.grouped_bottleneck.default


def chain_bottlenecks(graph: fx.Graph) -> None:
    """Puts a ``bottleneck_chain`` in the place of bottlenecks of which each feeds the next alone.

    Only of those with nothing but reads of constants between them, so that no order changes.
    """
    chains: list[list[fx.Node]] = []
    open_chain: list[fx.Node] = []
    for node in graph.nodes:
        if node.op == "get_attr":
            continue
        if open_chain and _continues(open_chain[-1], node):
            open_chain.append(node)
            continue
        open_chain = [node] if node.target is _BLOCK else []
        if open_chain:
            chains.append(open_chain)
    for chain in chains:
        if len(chain) > 1:
            _join(graph, chain)


def _continues(last: fx.Node, node: fx.Node) -> bool:
    if node.target is not _BLOCK or node.args[0] is not last or sole_user(last) is not node:
        return False
    return str(node.args[-1]) == str(last.args[-1])  # one activation for all


def _join(graph: fx.Graph, chain: list[fx.Node]) -> None:
    packed: list[Any] = []
    shift: list[Any] = []
    convs: list[int] = []
    strides: list[Any] = []
    dilations: list[Any] = []
    groups: list[Any] = []
    for block in chain:
        _, *constants, stride, dilation, count, act = block.args
        there = [constant for constant in constants if constant is not None]
        packed += there[::2]
        shift += there[1::2]
        convs.append(len(there) // 2)
        strides += stride  # type: ignore[arg-type]
        dilations += dilation  # type: ignore[arg-type]
        groups.append(count)
    with graph.inserting_before(chain[-1]):
        joined = graph.call_function(
            torch.ops.fastres.bottleneck_chain.default,
            (chain[0].args[0], packed, shift, convs, strides, dilations, groups, act),
        )
    joined.meta[FUSED] = "bottleneck_chain"
    chain[-1].replace_all_uses_with(joined)
    for block in reversed(chain):
        graph.erase_node(block)
