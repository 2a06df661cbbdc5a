"""The structure of a network, read off its graph: the chain of resolutions, residual blocks.

Nothing here knows a network by name. The *trunk* are the values that everything that reaches the
output has passed through: the stem's, each block's sum. Between two of them lies a plain layer, or
a residual block: an addition of two paths, of which the one with fewer convolutions is the
shortcut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..fx.names import op_name
from ..fx.tracing import default_pattern, trace
from ..fx.watching import TraceFailed
from ..rewrite.units import label

__all__ = ["ResidualBlock", "Structure", "structure_of"]

_ADDITIONS = {"add", "add_", "iadd"}
_ACTIVATIONS = {"relu", "relu_", "relu6", "silu", "silu_", "leaky_relu", "gelu", "hardswish"}
_ACTIVATION_MODULES = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.LeakyReLU, nn.GELU, nn.Hardswish, nn.PReLU)


@dataclass(frozen=True)
class ResidualBlock:
    """A shortcut and what is added to it."""

    name: str
    """Path of the module that holds it."""
    kind: str
    """"basic" (two 3x3 or the like), "bottleneck" (1x1, 3x3, 1x1) or "3 convolutions"."""
    shortcut: str
    """"identity", or "conv" where the shortcut changes the shape."""
    version: str
    """"v1" strides on the first convolution and "v1.5" on the 3x3 of a bottleneck; "v2" has no
    activation after the sum. "" where a block cannot tell v1 from v1.5: it does not stride."""
    output_shape: tuple[int, ...]
    """[N, C, H, W]."""


@dataclass(frozen=True)
class Structure:
    """What a network's graph shows."""

    chain: tuple[tuple[int, ...], ...]
    """[C, H, W] of the input and of the last value of the trunk at each resolution."""
    blocks: tuple[ResidualBlock, ...]
    """The residual blocks, in order."""

    @property
    def version(self) -> str:
        """Of the network, as far as its blocks tell: "v1", "v1.5", "v2" or ""."""
        told = {block.version for block in self.blocks} - {""}
        return told.pop() if len(told) == 1 else ""

    def __str__(self) -> str:
        (_, height, width), *others = self.chain
        return " → ".join([f"{height}x{width}", *(f"{h}x{w}x{c}" for c, h, w in others)])


def structure_of(model: nn.Module, input_shape: Sequence[int]) -> Structure | None:
    """Reads the structure off the graph of a model.

    Args:
        model: in eval mode, on the meta device.
        input_shape: [N, C, H, W].

    Returns:
        None where the input is no batch of images, or the model cannot be traced as a whole.
    """
    if len(input_shape) != 4:
        return None
    try:
        graph = trace(model, default_pattern(model)).graph
        values = _Recorder(model, graph)
        dtype = next((p.dtype for p in model.parameters()), torch.float32)
        with torch.no_grad():
            values.run(torch.empty(*input_shape, dtype=dtype, device="meta"))
    except (TraceFailed, RuntimeError, ValueError, TypeError):
        return None
    return _Reading(model, graph, values.shapes).structure(tuple(input_shape))


class _Recorder(fx.Interpreter):
    """Runs the graph and notes the shape of every tensor."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op != "get_attr":
            self.shapes[n] = tuple(value.shape)
        return value


class _Reading:
    def __init__(
        self, model: nn.Module, graph: fx.Graph, shapes: dict[fx.Node, tuple[int, ...]]
    ) -> None:
        self._modules = dict(model.named_modules())
        self._shapes = shapes
        self._nodes = [node for node in graph.nodes if node in shapes]
        self._order = {node: i for i, node in enumerate(graph.nodes)}

    def structure(self, input_shape: tuple[int, ...]) -> Structure:
        trunk = self._trunk()
        blocks = []
        for start, end, after in zip(trunk, trunk[1:], [*trunk[2:], None], strict=False):
            block = self._block(start, end, after)
            if block is not None:
                blocks.append(block)
        return Structure(self._chain(trunk, input_shape), tuple(blocks))

    def _trunk(self) -> list[fx.Node]:
        """The nodes after which nothing but their own value is still to be read."""
        last_use = {
            node: max((self._order[user] for user in node.users), default=-1)
            for node in self._nodes
        }
        trunk, furthest = [], -1
        for node in self._nodes:
            position = self._order[node]
            if furthest <= position and last_use[node] >= 0:
                trunk.append(node)
            furthest = max(furthest, last_use[node])
        return trunk

    def _chain(
        self, trunk: list[fx.Node], input_shape: tuple[int, ...]
    ) -> tuple[tuple[int, ...], ...]:
        chain = [input_shape[1:]]
        for node in trunk[1:]:
            shape = self._shapes[node]
            if len(shape) != 4:
                break
            if self._is_padding(node):
                continue
            if shape[2:] == chain[-1][1:] and len(chain) > 1:
                chain.pop()
            chain.append(shape[1:])
        # Pooling the whole image is no resolution of its own.
        if len(chain) > 2 and chain[-1][1:] == (1, 1) and chain[-1][0] == chain[-2][0]:
            chain.pop()
        return tuple(chain)

    def _is_padding(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self._modules.get(str(node.target)), nn.ZeroPad2d)
        return op_name(node) == "pad"

    # -- blocks --

    def _block(self, start: fx.Node, end: fx.Node, after: fx.Node | None) -> ResidualBlock | None:
        operands = [operand for operand in end.all_input_nodes if operand in self._shapes]
        is_sum = end.op in ("call_function", "call_method") and op_name(end) in _ADDITIONS
        if not is_sum or len(operands) != 2:
            return None
        paths = [self._convs(operand, start) for operand in operands]
        shortcut, main = sorted(paths, key=len)
        if not main or len(shortcut) == len(main):
            return None
        kernels = [self._kernel(conv) for conv in main]
        block = ResidualBlock(
            name=label(end).partition(":")[0],
            kind=_kind(kernels),
            shortcut="conv" if shortcut else "identity",
            version="",
            output_shape=self._shapes[end],
        )
        return replace(block, version=self._version(block, main, after))

    def _convs(self, node: fx.Node, start: fx.Node) -> list[fx.Node]:
        """The convolutions between the block's input and a node, in order."""
        seen: set[fx.Node] = set()
        stack = [node]
        while stack:
            current = stack.pop()
            if current in seen or current is start or current not in self._shapes:
                continue
            seen.add(current)
            stack.extend(current.all_input_nodes)
        convs = [current for current in seen if self._conv(current) is not None]
        return sorted(convs, key=self._order.__getitem__)

    def _conv(self, node: fx.Node) -> nn.Conv2d | None:
        module = self._modules.get(str(node.target)) if node.op == "call_module" else None
        return module if isinstance(module, nn.Conv2d) else None

    def _kernel(self, node: fx.Node) -> tuple[int, ...]:
        conv = self._conv(node)
        return () if conv is None else tuple(conv.kernel_size)

    def _version(self, block: ResidualBlock, main: list[fx.Node], after: fx.Node | None) -> str:
        if after is None or not self._is_activation(after):
            return "v2"
        if block.kind != "bottleneck":
            return ""
        strides = [max(conv.stride) for node in main if (conv := self._conv(node)) is not None]
        if max(strides) == 1:
            return ""
        return "v1" if strides[0] > 1 else "v1.5"

    def _is_activation(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self._modules.get(str(node.target)), _ACTIVATION_MODULES)
        return op_name(node) in _ACTIVATIONS


def _kind(kernels: list[tuple[int, ...]]) -> str:
    wide = [max(kernel, default=0) > 1 for kernel in kernels]
    if wide == [False, True, False]:
        return "bottleneck"
    return "basic" if wide == [True, True] else f"{len(kernels)} convolutions"
