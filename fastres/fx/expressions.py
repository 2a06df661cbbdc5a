"""Values that a graph computes from parameters alone, such as the scale of a frozen BatchNorm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.nn.parameter import is_lazy

from .codegen import compile_graph
from .names import is_inplace, is_trusted, op_name
from .sources import Source

# Pure functions that a scale or an offset may be made with. Anything else is not constant.
_PURE = {
    "view", "reshape", "unsqueeze", "squeeze", "flatten", "permute", "expand", "getitem", "neg",
    "add", "sub", "mul", "truediv", "div", "pow", "sqrt", "rsqrt", "exp", "log", "abs", "sigmoid",
    "tanh", "softplus", "reciprocal", "square", "clamp", "contiguous",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Expression:
    """A function of parameters."""

    sources: tuple[Source, ...]
    function: Callable[..., Any]
    shape: tuple[int, ...]
    """Of the value, when the graph was read."""

    def evaluate(self, tensors: Sequence[Tensor]) -> Tensor:
        """The value for the tensors of ``sources``, in their dtype."""
        return self.function(None, *tensors)


#: What multiplies or is added to every value of a channel.
Factor = Expression | float


def channels_of(factor: Factor) -> int | None:
    """1 for what is the same for all channels, C for a value for each; None for other shapes."""
    if isinstance(factor, float):
        return 1
    padded = (1, 1, 1, 1, *factor.shape)[-4:] if len(factor.shape) <= 4 else (0,)
    if len(padded) != 4 or (padded[0], *padded[2:]) != (1, 1, 1):
        return None
    return padded[1]


class Expressions:
    """Finds the constant expressions of a graph.

    Args:
        source: where the tensor of a node comes from, or None if the graph computes it.
        tensor_of: the tensor that a source has now.
    """

    def __init__(
        self,
        source: Callable[[fx.Node], Source | None],
        tensor_of: Callable[[Source], Tensor | None],
    ) -> None:
        self._source = source
        self._tensor_of = tensor_of
        self._constant: dict[fx.Node, bool] = {}
        self._built: dict[fx.Node, Expression | None] = {}

    def find(self, value: Any) -> Factor | None:
        """A number, or the expression that a node is; None if it depends on the graph's inputs."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, fx.Node) or not self._is_constant(value):
            return None
        if value not in self._built:
            self._built[value] = self._build(value)
        return self._built[value]

    def _is_constant(self, node: fx.Node) -> bool:
        known = self._constant.get(node)
        if known is None:
            known = self._source(node) is not None or (
                is_pure(node)
                and bool(node.all_input_nodes)
                and all(map(self._is_constant, node.all_input_nodes))
                and not any(_may_write(user) for user in node.users)
            )
            self._constant[node] = known
        return known

    def _build(self, value: fx.Node) -> Expression | None:
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        sources: list[Source] = []

        def copy(node: fx.Node) -> fx.Node:
            if node not in copies:
                source = self._source(node)
                if source is not None:
                    sources.append(source)
                    copies[node] = graph.placeholder(f"p{len(sources)}")
                else:
                    for operand in node.all_input_nodes:
                        copy(operand)
                    copies[node] = graph.node_copy(node, copies.__getitem__)
            return copies[node]

        graph.output(copy(value))
        # Placeholders have to come first.
        first = next(iter(graph.nodes))
        for node in list(graph.nodes):
            if node.op == "placeholder" and node is not first:
                first.append(node)
                first = node
        function = compile_graph(graph)
        tensors = [self._tensor_of(source) for source in sources]
        if any(tensor is None or is_lazy(tensor) for tensor in tensors):
            return None
        result = function(None, *tensors)
        if not isinstance(result, Tensor):
            return None
        return Expression(tuple(sources), function, tuple(result.shape))


def is_pure(node: fx.Node) -> bool:
    """Whether a node computes what a constant expression may consist of, and nothing else."""
    if node.op not in ("call_function", "call_method") or not is_trusted(node):
        return False
    return op_name(node) in _PURE and not is_inplace(node) and "out" not in node.kwargs


def _may_write(node: fx.Node) -> bool:
    return node.op == "call_module" or not is_trusted(node) or is_inplace(node)
