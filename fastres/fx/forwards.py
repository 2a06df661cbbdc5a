"""Lets a tracer see ``child.forward(x)``, which ``torch.fx`` looks straight through."""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def forwards_seen(root: nn.Module, see: Callable[..., Any]) -> Iterator[None]:
    """While the body runs, a ``forward`` of a module in ``root`` is handed over instead of run.

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
