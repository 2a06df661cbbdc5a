"""Finds out what a ``forward`` does that a graph of it would not repeat, and takes it back."""

from __future__ import annotations

import gc
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .structure import configs


class TraceFailed(Exception):
    """A module cannot be traced; the message says why."""


#: Why, where other threads may have done it.
DREW = "it draws random numbers"


@contextmanager
def watch(module: nn.Module, draws_of_numpy: bool = True) -> Iterator[None]:
    """Raises TraceFailed if the body draws random numbers or changes the module's attributes.

    PyTorch's operators that would draw are not run. Other draws, and the attributes, are put back.

    Args:
        module: what has the attributes.
        draws_of_numpy: whether to look for those of NumPy, which lets other threads run.
    """
    before = [_Attributes(watched) for watched in (module, *configs(module))]
    with torch._C.DisableTorchFunction():  # these reads are nobody's to see
        states, draws = _RandomStates(draws_of_numpy), _NoDraws()
    try:
        with draws:
            yield
    finally:
        with torch._C.DisableTorchFunction():
            drew = states.changed()
            if drew:
                states.restore()
        changed = next(filter(None, [attributes.restore() for attributes in before]), None)
    if drew or draws.refused:  # the user's code may have caught what was raised
        raise TraceFailed(DREW)
    if changed is not None:
        raise TraceFailed(f"its forward assigns its attribute {changed!r}")


# Seconds after which another thread runs that does not get its turn before.
_LONG = 1.0


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keeps other Python threads waiting while this one does not, or for a second.

    What they drew at random, as those do that load data, would look like this one's draws.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_LONG)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


class _NoDraws(TorchDispatchMode):
    """Raises in place of an operator that draws random numbers, in this thread alone.

    Taking a draw back is no substitute: it would take back what other threads drew meanwhile, and
    there nearly always are others, such as a progress bar's.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else PyTorch imports Dynamo at the first operator, which takes seconds and keeps what it
        # finds of nn.Module, while torch.fx has patched that.
        return False

    def __init__(self) -> None:
        super().__init__()
        self.refused = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.refused = True
            raise TraceFailed(DREW)
        return func(*args, **(kwargs or {}))


def take_back(value: Any) -> None:
    """Removes a value from the lists, sets and dicts that hold it, as far as these can be found."""
    for holder in gc.get_referrers(value):
        if isinstance(holder, list):
            holder[:] = [item for item in holder if item is not value]
        elif isinstance(holder, set):
            holder.discard(value)
        elif isinstance(holder, dict):
            for key in [key for key, item in holder.items() if item is value]:
                del holder[key]


class _RandomStates:
    """States of the generators that a forward may draw from.

    What other threads draw would look like its draws: where there are any, reading a state must
    not let them run. PyTorch's, which does, is left to ``_NoDraws`` then.
    """

    def __init__(self, with_numpy: bool) -> None:
        numpy = sys.modules.get("numpy") if with_numpy else None
        self._numpy = None if numpy is None else numpy.random.get_state()
        self._torch = torch.get_rng_state() if threading.active_count() == 1 else None
        self._python = random.getstate()  # last, as what comes before may let others run

    def changed(self) -> bool:
        """Whether one is another by now."""
        if random.getstate() != self._python:
            return True
        if self._torch is not None and not torch.equal(self._torch, torch.get_rng_state()):
            return True
        if self._numpy is None:
            return False
        current = sys.modules["numpy"].random.get_state()
        return not all(map(_equal, self._numpy, current))

    def restore(self) -> None:
        """Puts them back, unless the draws may have been other threads'."""
        if threading.active_count() > 1:
            return
        random.setstate(self._python)
        if self._torch is not None:
            torch.set_rng_state(self._torch)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)


def _equal(a: Any, b: Any) -> bool:
    return bool((a == b) if not hasattr(a, "all") else (a == b).all())


class _Attributes:
    """An object's attributes, with the contents of lists, dicts and sets one level deep."""

    def __init__(self, module: Any) -> None:
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
