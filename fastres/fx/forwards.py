"""Looks at ``forward`` functions for what tracing them would miss."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .classes import STANDS_FOR
from .structure import original_class
from .watching import TraceFailed


@contextmanager
def forwards_seen(root: nn.Module, see: Callable[..., Any]) -> Iterator[None]:
    """While the body runs, a ``forward`` of a module in ``root`` is handed over instead of run.

    ``torch.fx`` sees ``child(x)``, and looks straight through ``child.forward(x)``.

    Args:
        root: the module whose submodules' classes are watched.
        see: called in this thread's calls with the module, its ``forward`` (bound), the positional
            arguments and the keyword arguments; its result is that of the call. Other threads'
            calls pass.
    """
    thread = threading.get_ident()
    active = True

    def replacement(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            # Inactive: somebody kept it, such as another thread that was deriving a class.
            if not active or threading.get_ident() != thread:
                return original(self, *args, **kwargs)
            return see(self, functools.partial(original, self), args, kwargs)

        setattr(forward, STANDS_FOR, original)
        return forward

    originals = dict(filter(None, map(_own_forward, root.modules())))
    try:
        for cls, original in originals.items():
            cls.forward = replacement(original)
        yield
    finally:
        active = False
        for cls, original in originals.items():
            cls.forward = original


def _own_forward(module: nn.Module) -> tuple[Any, Callable[..., Any]] | None:
    """The class that defines a module's ``forward``, and that; None if it is no function."""
    for cls in type(module).__mro__:
        if "forward" in vars(cls):
            forward = vars(cls)["forward"]
            return (cls, forward) if isinstance(forward, types.FunctionType) else None
    return None


def check_types_unread(module: nn.Module) -> None:
    """Raises TraceFailed if ``forward`` asks ``type(x)``, which is not a proxy's to answer."""
    forward = inspect.unwrap(original_class(module).forward)
    if inspect.isfunction(forward) and _reads_types(forward.__code__):
        raise TraceFailed("it asks for the type of a value")


@functools.lru_cache(maxsize=1024)
def _reads_types(code: types.CodeType) -> bool:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, SyntaxError):
        return False  # there is no source to look at
    return any(map(_is_type_call, _decisive(tree)))


def _decisive(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below one that may decide what is computed: not those of messages."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.Raise, ast.JoinedStr)):
            yield child
            yield from _decisive(child)


def _is_type_call(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    of_self = node.args and isinstance(node.args[0], ast.Name) and node.args[0].id == "self"
    return node.func.id == "type" and len(node.args) == 1 and not of_self
