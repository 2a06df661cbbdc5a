"""Fused graphs whose convolutions read weights as they are, instead of packed ones."""

from __future__ import annotations

import torch
from torch import fx

from .packing import live_names, packed_index


def live_form(graph: fx.Graph) -> fx.Graph:
    """A copy of a fused graph in which single convolutions pack their weights while they run.

    Bottlenecks read each weight once per band of rows; theirs are packed before.
    """
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, val_map={}))
    for node in list(copy.nodes):
        if node.target is not torch.ops.fastres.conv_bn_act.default:
            continue
        x, packed, shift, residual, _, stride, padding, dilation, groups, *act = node.args
        assert isinstance(packed, fx.Node)
        index = packed_index(str(packed.target))
        assert index is not None
        with copy.inserting_before(node):
            weight, scale, algorithm = (
                copy.create_node("get_attr", name) for name in live_names(index)
            )
            live = copy.call_function(
                torch.ops.fastres.live_conv_bn_act.default,
                (
                    *(x, weight, scale, shift, residual, stride, padding, dilation, groups),
                    *(algorithm, *act),
                ),
            )
        live.meta = node.meta
        node.replace_all_uses_with(live)
        copy.erase_node(node)
        if not packed.users:
            copy.erase_node(packed)
    return copy
