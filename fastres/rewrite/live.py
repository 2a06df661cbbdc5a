"""Fused graphs whose convolutions read weights as they are, instead of packed ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from ..fx.heads import suits_linear
from ..fx.names import FUSED
from ..weights.packing import chain_names, live_names, live_number, packed_number
from .chaining import find_chains, replace_chain


def live_form(graph: fx.Graph) -> fx.Graph:
    """A copy of a fused graph in which convolutions pack their weights while they run."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, val_map={}))
    for node in list(copy.nodes):
        with copy.inserting_before(node):
            if node.target is torch.ops.fastres.conv_bn_act.default:
                live = _conv(copy, *node.args)
            elif node.target is torch.ops.fastres.conv_max_pool.default:
                live = _conv_max_pool(copy, *node.args)
            elif node.target is torch.ops.fastres.grouped_bottleneck.default:
                live = _bottleneck(copy, *node.args)
            else:
                continue
        node.replace_all_uses_with(live)
        copy.erase_node(node)
    _drop_unread(copy)
    return copy


def _drop_unread(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def chain_live_bottlenecks(graph: fx.Graph, first: int) -> list[list[int]]:
    """Puts a ``live_bottleneck_chain`` in the place of blocks of which each feeds the next alone.

    Args:
        graph: a ``live_form``; rewritten in place.
        first: the ``first_number`` of its constants.

    Returns:
        Of each chain the recipes of its convolutions in turn: its scales and shifts are read under
        their ``chain_names``.
    """
    chains = find_chains(graph, torch.ops.fastres.live_bottleneck.default)
    members = [_join(graph, chain, *chain_names(i)) for i, chain in enumerate(chains, first)]
    _drop_unread(graph)
    return [[number - first for number in numbers] for numbers in members]


def _join(graph: fx.Graph, chain: list[fx.Node], scale: str, shift: str) -> list[int]:
    """The numbers of the recipes that were joined."""
    weights: list[fx.Node] = []
    algorithms: list[Any] = []
    geometry: tuple[list[int], ...] = ([], [], [], [])  # convs, stride, dilation, groups
    for block in chain:
        _, *operands, stride, dilation, groups, algorithm, act = block.args
        there = [weight for weight in operands[::3] if isinstance(weight, fx.Node)]
        weights += there
        algorithms.append(algorithm)
        for values, more in zip(geometry, ([len(there)], stride, dilation, [groups]), strict=True):
            values.extend(more)  # type: ignore[arg-type]
    with graph.inserting_before(chain[-1]):
        vectors = [graph.create_node("get_attr", name) for name in (scale, shift)]
        joined = graph.call_function(
            torch.ops.fastres.live_bottleneck_chain.default,
            (chain[0].args[0], weights, *vectors, algorithms, *geometry, act),
        )
    joined.meta[FUSED] = "live_bottleneck_chain"
    replace_chain(graph, chain, joined)
    numbers = [live_number(str(weight.target)) for weight in weights]
    return [number for number in numbers if number is not None]


def guard_heads(graph: fx.Graph) -> None:
    """Lets heads look at their parameters, which may be others by then, at each call; in place."""
    for node in graph.nodes:
        if node.target is torch.ops.fastres.avg_pool_linear.default:
            node.target = _head


def _head(x: Tensor, weight: Any, bias: Any) -> Tensor:
    if suits_linear(weight, bias) and weight.dtype == x.dtype == bias.dtype:
        return torch.ops.fastres.avg_pool_linear(x, weight, bias)
    return F.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1), weight, bias)


def _conv(
    graph: fx.Graph,
    x: fx.Node,
    packed: fx.Node,
    shift: fx.Node,
    residual: fx.Node | None,
    _: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    act: Any,
    act_slope: Any,
) -> fx.Node:
    weight, scale, algorithm = _live(graph, packed)
    node = graph.call_function(
        torch.ops.fastres.live_conv_bn_act.default,
        (
            *(x, weight, scale, shift, residual, stride, padding, dilation, groups),
            *(algorithm, act, act_slope),
        ),
    )
    node.meta[FUSED] = "live_conv_bn_act"
    return node


def _conv_max_pool(
    graph: fx.Graph, x: fx.Node, packed: fx.Node, shift: fx.Node, _: Any, *arguments: Any
) -> fx.Node:
    weight, scale, _ = _live(graph, packed)
    node = graph.call_function(
        torch.ops.fastres.live_conv_max_pool.default, (x, weight, scale, shift, *arguments)
    )
    node.meta[FUSED] = "live_conv_max_pool"
    return node


def _bottleneck(
    graph: fx.Graph,
    x: fx.Node,
    packed1: fx.Node,
    shift1: fx.Node,
    packed2: fx.Node,
    shift2: fx.Node,
    packed3: fx.Node,
    shift3: fx.Node,
    packed_down: fx.Node | None,
    shift_down: fx.Node | None,
    stride: Any,
    dilation: Any,
    groups: Any,
    act: Any,
) -> fx.Node:
    weight1, scale1, _ = _live(graph, packed1)
    weight2, scale2, algorithm = _live(graph, packed2)
    weight3, scale3, _ = _live(graph, packed3)
    weight_down = scale_down = None
    if packed_down is not None:
        weight_down, scale_down, _ = _live(graph, packed_down)
    node = graph.call_function(
        torch.ops.fastres.live_bottleneck.default,
        (
            *(x, weight1, scale1, shift1, weight2, scale2, shift2, weight3, scale3, shift3),
            *(weight_down, scale_down, shift_down, stride, dilation, groups, algorithm, act),
        ),
    )
    node.meta[FUSED] = "live_bottleneck"
    return node


def _live(graph: fx.Graph, packed: fx.Node) -> tuple[fx.Node, ...]:
    """The weight as it is, its scale and the algorithm, in place of a packed weight."""
    number = packed_number(str(packed.target))
    assert number is not None
    return tuple(graph.create_node("get_attr", name) for name in live_names(number))
