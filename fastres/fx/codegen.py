"""FX graphs as plain Python functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx


def compile_graph(graph: fx.Graph) -> Callable[..., Any]:
    """A graph as a function of ``self``, whose attributes it reads, and its placeholders."""
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, "<fastres>", "exec"), namespace)
    return namespace["forward"]
