"""Fused graphs whose convolutions read weights as they are, instead of packed ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from .fx.names import FUSED
from .packing import live_names, packed_index
from .recipes import NormRecipe, Recipe

# A bottleneck's operator reads its packed weights once per band of rows, so they have to stay in
# the level-2 cache. Blocks of more weights come where images are small: there an operator for each
# convolution is as fast, and takes each weight once.
_MAX_BLOCK_WEIGHTS = 512 << 10

_NO_PADDING, _UNIT, _SLOPE = [0, 0, 0, 0], [1, 1], 0.01


def live_form(graph: fx.Graph, recipes: Sequence[Recipe | NormRecipe]) -> fx.Graph:
    """A copy of a fused graph in which convolutions pack their weights while they run.

    Bottlenecks of few weights stay: theirs are packed before, in no time.

    Args:
        graph: the fused graph.
        recipes: of its constants.
    """
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, val_map={}))
    for node in list(copy.nodes):
        with copy.inserting_before(node):
            if node.target is torch.ops.fastres.conv_bn_act.default:
                live = _conv(copy, *node.args)
            elif node.target is torch.ops.fastres.grouped_bottleneck.default and (
                _weights(node, recipes) > _MAX_BLOCK_WEIGHTS
            ):
                live = _bottleneck(copy, *node.args)
            else:
                continue
        node.replace_all_uses_with(live)
        copy.erase_node(node)
    for node in reversed(list(copy.nodes)):
        if node.op == "get_attr" and not node.users:
            copy.erase_node(node)
    return copy


def _weights(block: fx.Node, recipes: Sequence[Recipe | NormRecipe]) -> int:
    """Elements of all weights of a bottleneck."""
    indices = [packed_index(str(node.target)) for node in block.all_input_nodes]
    chosen = [recipes[index] for index in indices if index is not None]
    return sum(math.prod(recipe.weight_shape) for recipe in chosen if isinstance(recipe, Recipe))


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
    index = packed_index(str(packed.target))
    assert index is not None
    weight, scale, algorithm = (graph.create_node("get_attr", name) for name in live_names(index))
    node = graph.call_function(
        torch.ops.fastres.live_conv_bn_act.default,
        (
            *(x, weight, scale, shift, residual, stride, padding, dilation, groups),
            *(algorithm, act, act_slope),
        ),
    )
    node.meta[FUSED] = "live_conv_bn_act"
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
    def pointwise(
        x: fx.Node, packed: fx.Node, shift: fx.Node, residual: fx.Node | None, step: Any, act: Any
    ) -> fx.Node:
        return _conv(
            graph, x, packed, shift, residual, None, step, _NO_PADDING, _UNIT, 1, act, _SLOPE
        )

    shortcut = x
    if packed_down is not None and shift_down is not None:
        shortcut = pointwise(x, packed_down, shift_down, None, stride, "none")
    inner = pointwise(x, packed1, shift1, None, _UNIT, act)
    (vertical, horizontal) = dilation
    padding = [vertical, vertical, horizontal, horizontal]
    inner = _conv(
        graph, inner, packed2, shift2, None, None, stride, padding, dilation, groups, act, _SLOPE
    )
    return pointwise(inner, packed3, shift3, shortcut, _UNIT, act)
