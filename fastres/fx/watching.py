"""Finds out what a ``forward`` does that a graph of it would not repeat, and takes it back."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class TraceFailed(Exception):
    """A module cannot be traced; the message says why."""


@contextmanager
def watch(module: nn.Module) -> Iterator[None]:
    """Raises TraceFailed if the body draws random numbers or changes the module's attributes.

    PyTorch's operators that would draw are not run. Other draws, and the attributes, are put back.
    """
    before = _Attributes(module)
    states = _random_states()
    try:
        with _NoDraws():
            yield
    finally:
        drew = _restore_random_states(states)
        changed = before.restore()
    if drew:
        raise TraceFailed("it draws random numbers")
    if changed is not None:
        raise TraceFailed(f"its forward assigns its attribute {changed!r}")


class _NoDraws(TorchDispatchMode):
    """Raises in place of an operator that draws random numbers, in this thread alone.

    Taking a draw back is no substitute: it would take back what other threads drew meanwhile, and
    there nearly always are others, such as a progress bar's.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise TraceFailed("it draws random numbers")
        return func(*args, **(kwargs or {}))


def _random_states() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    legacy = numpy.random.get_state() if numpy is not None else None
    return torch.get_rng_state(), random.getstate(), legacy


def _restore_random_states(states: tuple[Any, ...]) -> bool:
    """Puts the random states back; says whether they had changed.

    With other threads about, the draws may have been theirs, and are not taken back.
    """
    current = _random_states()
    if (
        torch.equal(states[0], current[0])
        and states[1] == current[1]
        and (states[2] is None or all(map(_equal, states[2], current[2])))
    ):
        return False
    if threading.active_count() == 1:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if states[2] is not None:
            sys.modules["numpy"].random.set_state(states[2])
    return True


def _equal(a: Any, b: Any) -> bool:
    return bool((a == b) if not hasattr(a, "all") else (a == b).all())


class _Attributes:
    """A module's attributes, with the contents of lists, dicts and sets one level deep."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._values = dict(module.__dict__)
        self._contents = {
            name: value.copy()
            for name, value in self._values.items()
            if isinstance(value, (list, dict, set))
        }

    def restore(self) -> str | None:
        """Puts the attributes back; returns the name of one that had changed, if any."""
        changed = None
        current = self._module.__dict__
        for name in {*self._values, *current}:
            if name not in self._values:
                changed = name
                del current[name]
            elif current.get(name, self) is not self._values[name]:
                changed = name
                current[name] = self._values[name]
        for name, content in self._contents.items():
            if not _same_items(self._values[name], content):
                changed = name
                _refill(self._values[name], content)
        return changed


def _items(container: Any) -> list[Any]:
    if isinstance(container, dict):
        return [part for item in container.items() for part in item]
    return list(container)


def _same_items(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(map(lambda x, y: x is y, _items(a), _items(b)))


def _refill(container: Any, content: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(content)
