"""Whether classes are still written as they were when their modules were traced.

``ResNet._forward_impl = mine``, or an attribute of the class that a ``forward`` reads: what a trace
saw of a class holds only for as long as nobody writes to it.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from .plain import Values

#: What the class of an accelerated module calls the class that it was made from, and its forward.
ORIGINAL_CLASS = "_fastres_class"
ORIGINAL_FORWARD = "_fastres_forward"

#: On a function that stands for another while a trace runs: the other.
STANDS_FOR = "_fastres_stands_for"


def classes_of(modules: Iterable[nn.Module]) -> Iterator[type]:
    """The classes that ``modules`` are of or derive from, but PyTorch's base and fastres's own."""
    seen: set[type] = {object, nn.Module}
    for cls in {type(module) for module in modules}:
        for base in cls.__mro__:
            if base not in seen and ORIGINAL_CLASS not in vars(base):
                seen.add(base)
                yield base


def _written(cls: type) -> dict[str, Any]:
    """What the user may have written: to the names with underscores Python itself adds some."""
    return {
        name: _lasting(value)
        for name, value in vars(cls).items()
        if name == "__call__" or not name.startswith("__")
    }


def _lasting(value: Any) -> Any:
    is_function = isinstance(value, types.FunctionType)
    return vars(value).get(STANDS_FOR, value) if is_function else value


class ClassRecord:
    """The attributes of a class, and whether they are what they were."""

    __slots__ = ("_cls", "_size", "_values", "_written")

    def __init__(self, cls: type) -> None:
        written = _written(cls)
        self._cls = cls
        self._size = len(vars(cls))
        self._written = len(written)
        self._values = Values(written)

    def holds(self, root: nn.Module) -> bool:
        """Whether nothing was written, removed or added."""
        attributes = vars(self._cls)
        if len(attributes) == self._size and self._values.hold(attributes):
            return True
        # Python's own names, or another thread that traces: rare, and slower.
        written = _written(self._cls)
        return len(written) == self._written and self._values.hold(written)
