"""Gives values back the memory format that eager PyTorch gives them, where somebody may look.

The operators return channels_last. In eager, a contiguous input gives contiguous activations, and
``x.view(n, -1)`` or a hook that reads strides relies on it. Between operators that do not care,
values stay channels_last; before the others, and before they are returned, they are converted.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import fx, nn

from .effects import Effects
from .names import FUSED, is_trusted, op_name, reads_only_metadata
from .patterns import Reader

# What gives the same values for any strides, and channels_last for channels_last.
_AGNOSTIC = {
    "relu", "relu_", "relu6", "silu", "silu_", "leaky_relu", "leaky_relu_", "sigmoid", "sigmoid_",
    "tanh", "tanh_", "gelu", "hardswish", "hardswish_", "hardsigmoid", "hardtanh", "hardtanh_",
    "elu", "mish", "dropout", "add", "add_", "iadd", "sub", "isub", "mul", "mul_", "imul",
    "truediv", "div", "neg", "conv2d", "batch_norm", "max_pool2d", "avg_pool2d",
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate", "cat", "clone", "detach", "to",
    "float", "half", "bfloat16",
}  # fmt: skip
_AGNOSTIC_MODULES = (
    nn.ReLU, nn.Hardtanh, nn.SiLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.Hardswish,
    nn.Hardsigmoid, nn.ELU, nn.Mish, nn.Identity, nn.modules.dropout._DropoutNd, nn.BatchNorm2d,
    nn.SyncBatchNorm, nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample,
)  # fmt: skip


def chooses_format(graph: fx.Graph) -> bool:
    """Whether the graph itself asks for channels_last somewhere."""
    return any(
        torch.channels_last in (*node.args, *node.kwargs.values())
        for node in graph.nodes
        if node.op in ("call_function", "call_method")
    )


def restore_contiguous(
    graph: fx.Graph, reader: Reader, is_channels_last: Callable[[fx.Node], bool]
) -> None:
    """Inserts ``.contiguous()`` where a value's strides matter, in place.

    Args:
        graph: the graph; its inputs are contiguous.
        reader: reads its nodes.
        is_channels_last: whether a node's output is channels_last of its own.
    """
    effects = Effects(graph, reader)
    converted: set[fx.Node] = set()  # channels_last here, contiguous in eager
    for node in list(graph.nodes):
        operands = [operand for operand in node.all_input_nodes if operand in converted]
        if is_channels_last(node) or (operands and _is_agnostic(node, reader)):
            written = effects.writes(node)
            if written and converted.isdisjoint(written):
                continue  # returns what it wrote to
            if _is_written_through_a_view(node, effects, reader):
                _convert_after(graph, node)
            else:
                converted.add(node)
        elif operands and not _takes_any_strides(node):
            _convert_before(graph, node, operands)


def _takes_any_strides(node: fx.Node) -> bool:
    return FUSED in node.meta or reads_only_metadata(node) or op_name(node) == "contiguous"


def _is_written_through_a_view(node: fx.Node, effects: Effects, reader: Reader) -> bool:
    """Whether a copy before a view would take writes away from the value that is viewed."""
    sharing = set(effects.sharing(node))
    return effects.is_written(node) and any(
        not sharing.isdisjoint(other.all_input_nodes)
        and not _is_agnostic(other, reader)
        and not reads_only_metadata(other)
        for other in sharing
    )


def _is_agnostic(node: fx.Node, reader: Reader) -> bool:
    if node.op == "call_module":
        return isinstance(reader.module(node), _AGNOSTIC_MODULES)
    if node.op not in ("call_function", "call_method") or not is_trusted(node):
        return False
    if node.target is operator.getitem:
        return False
    return op_name(node) in _AGNOSTIC


def _convert_after(graph: fx.Graph, node: fx.Node) -> None:
    users = list(node.users)
    with graph.inserting_after(node):
        contiguous = graph.call_method("contiguous", (node,))
    for user in users:
        user.replace_input_with(node, contiguous)


def _convert_before(graph: fx.Graph, node: fx.Node, operands: list[fx.Node]) -> None:
    for operand in operands:
        with graph.inserting_before(node):
            contiguous = graph.call_method("contiguous", (operand,))
        node.replace_input_with(operand, contiguous)
