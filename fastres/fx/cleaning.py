"""Takes out of a graph what only stands in the way: identities, checks that surely pass."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from .names import reads_only_metadata
from .patterns import Reader
from .readings import Same
from .shapes import Image, Shapes

_COMPARISONS = {operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge}
_RANKS = {"dim", "ndimension", "ndim"}


def clean(
    graph: fx.Graph, reader: Reader, inputs: Callable[[fx.Node], Image | None]
) -> set[fx.Node]:
    """Removes identities, ranks that are known to be 4, and what is then known or unused.

    Returns:
        The placeholders that the ranks assumed to have 4 dimensions.
    """
    for node in list(graph.nodes):
        reading = reader.read(node)
        if isinstance(reading, Same) and isinstance(reading.x, fx.Node):
            node.replace_all_uses_with(reading.x)
            graph.erase_node(node)
    shapes = Shapes(graph, reader, inputs)
    assumed: set[fx.Node] = set()
    for node in list(graph.nodes):
        known = _constant_of(node, shapes)
        if known is not None:
            for operand in node.all_input_nodes:
                image = shapes.image(operand)
                assumed.update(() if image is None else image.needs)
            _substitute(node, known)
            graph.erase_node(node)
        elif node.target is torch._assert and node.args[:1] == (True,):
            graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if not node.users and (reads_only_metadata(node) or _takes_from_metadata(node)):
            graph.erase_node(node)
    return assumed


def _constant_of(node: fx.Node, shapes: Shapes) -> Any:
    """The value of a rank or of a comparison of constants; None if it is neither."""
    if reads_only_metadata(node):
        query = node.target if node.op == "call_method" else node.args[1]
        x = node.args[0]
        if query in _RANKS and isinstance(x, fx.Node) and shapes.image(x) is not None:
            return 4
    elif node.op == "call_function" and node.target in _COMPARISONS:
        a, b = node.args
        if isinstance(a, int) and isinstance(b, int):
            return node.target(a, b)
    return None


def _takes_from_metadata(node: fx.Node) -> bool:
    return (
        node.target is operator.getitem
        and isinstance(node.args[0], fx.Node)
        and reads_only_metadata(node.args[0])
    )


def _substitute(node: fx.Node, value: Any) -> None:
    for user in list(node.users):
        user.args = fx.map_arg(user.args, lambda n: value if n is node else n)
        user.kwargs = fx.map_arg(user.kwargs, lambda n: value if n is node else n)
