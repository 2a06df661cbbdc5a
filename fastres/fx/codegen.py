"""FX graphs as plain Python functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx


class Scope:
    """What a compiled graph calls ``self``.

    Args:
        values: attributes by name.
        otherwise: gives any other attribute.
    """

    __slots__ = ("__dict__", "_otherwise")

    def __init__(self, values: dict[str, Any], otherwise: Callable[[str], Any]) -> None:
        object.__setattr__(self, "__dict__", values)
        self._otherwise = otherwise

    def __getattr__(self, name: str) -> Any:
        return self._otherwise(name)


def compile_graph(graph: fx.Graph) -> Callable[..., Any]:
    """A graph as a function of a ``Scope``, whose attributes it reads, and its placeholders."""
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, "<fastres>", "exec"), namespace)
    return namespace["forward"]
