"""Which nodes of a graph write to their arguments, and which values may share memory.

Fusing moves reads: a convolution that stood above ``x.relu_()`` and is computed below it would read
another ``x``. Where this file does not know, it assumes the worst.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from .names import FUSED, is_inplace, is_trusted, op_name
from .patterns import Reader

# What surely allocates its output. Methods by name, functions by the name they have in torch or F.
_FRESH = {
    "add", "sub", "mul", "div", "cat", "stack", "conv2d", "batch_norm", "relu", "relu6", "silu",
    "leaky_relu", "gelu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "max_pool2d",
    "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "linear", "mean", "sum", "softmax",
    "clone", "matmul", "bmm", "truediv", "elu", "mish",
}  # fmt: skip
_FRESH_MODULES = (
    nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.ReLU, nn.ReLU6, nn.SiLU, nn.LeakyReLU, nn.GELU,
    nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.ELU, nn.Mish, nn.MaxPool2d,
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Linear, nn.ConvTranspose2d,
)  # fmt: skip


class Effects:
    """Writes and aliases of one graph, in its state when this was made.

    Args:
        graph: the graph.
        reader: reads its nodes.
    """

    def __init__(self, graph: fx.Graph, reader: Reader) -> None:
        self._reader = reader
        self._order = {node: i for i, node in enumerate(graph.nodes)}
        self._parent: dict[fx.Node, fx.Node] = {node: node for node in graph.nodes}
        self._owned: dict[fx.Node, bool] = {}
        self._written: list[tuple[int, fx.Node, fx.Node]] = []
        for node in graph.nodes:
            self._visit(node)
        self._members: dict[fx.Node, list[fx.Node]] = {}
        for node in graph.nodes:
            self._members.setdefault(self._class(node), []).append(node)

    # -- building --

    def _visit(self, node: fx.Node) -> None:
        if node.op == "output":
            return
        writes = self.writes(node)
        self._written.extend((self._order[node], node, value) for value in writes)
        if writes and not self._is_opaque(node):
            shared = writes  # an in-place operator returns what it wrote to
        else:
            shared = [] if self._is_fresh(node) else node.all_input_nodes
        for operand in shared:
            self._join(node, operand)
        if node.op in ("placeholder", "get_attr") or self._is_opaque(node):
            self._owned[self._class(node)] = False

    def _is_opaque(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return self._reader.module(node) is None
        return not is_trusted(node)

    def _is_fresh(self, node: fx.Node) -> bool:
        if FUSED in node.meta:
            return True
        if node.op == "call_module":
            return isinstance(self._reader.module(node), _FRESH_MODULES)
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace != "aten":
            # A custom operator's schema is the truth; some of ATen's keep an alias to themselves.
            return all(result.alias_info is None for result in node.target._schema.returns)
        if node.op in ("call_function", "call_method") and is_trusted(node):
            return op_name(node) in _FRESH
        return False

    def writes(self, node: fx.Node) -> list[fx.Node]:
        """The operands that a node may write to."""
        if node.op in ("placeholder", "get_attr"):
            return []
        if self._is_opaque(node):
            return node.all_input_nodes
        if node.op == "call_module":
            inplace = getattr(self._reader.module(node), "inplace", False)
            return node.all_input_nodes if inplace else []
        written: list[Any] = []
        if is_inplace(node):
            written.extend(node.args[:1] or list(node.kwargs.values())[:1])
        out = node.kwargs.get("out")
        written.extend(out if isinstance(out, (tuple, list)) else [out])
        return [value for value in written if isinstance(value, fx.Node)]

    def _class(self, node: fx.Node) -> fx.Node:
        while self._parent[node] is not node:
            self._parent[node] = node = self._parent[self._parent[node]]
        return node

    def _join(self, a: fx.Node, b: fx.Node) -> None:
        first, second = self._class(a), self._class(b)
        if first is not second:
            owned = self._owned.get(first, True) and self._owned.get(second, True)
            self._parent[first] = second
            self._owned[second] = owned

    # -- questions --

    def can_read_later(self, value: fx.Node, read: fx.Node, later: fx.Node) -> bool:
        """Whether ``value`` is the same at ``later`` as at ``read``, an earlier node."""
        start, end, target = self._order[read], self._order[later], self._class(value)
        return not any(
            start < position < end and self._class(written) is target
            for position, _, written in self._written
        )

    def is_written(self, value: fx.Node) -> bool:
        """Whether anything in the graph writes to the memory of ``value``."""
        target = self._class(value)
        return any(self._class(written) is target for _, _, written in self._written)

    def sharing(self, value: fx.Node) -> list[fx.Node]:
        """The nodes whose values may share memory with ``value``, itself among them."""
        return self._members[self._class(value)]

    def write_is_private(self, value: fx.Node, writer: fx.Node) -> bool:
        """Whether nobody sees that ``writer`` writes to ``value``, but through its result."""
        target, position = self._class(value), self._order[writer]
        if not self._owned.get(target, True):
            return False
        return all(
            self._order[user] <= position
            for member in self._members[target]
            if self._order[member] < position
            for user in member.users
        )
