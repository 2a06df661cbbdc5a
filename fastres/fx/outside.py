"""What the code of a trace reads outside of the model, and whether it is what it was.

``if USE_RELU6:`` with a global of the user's, a helper function that somebody replaces, a flag in
a module ``config``: a trace has seen one value of each. They are found by name, in what ``forward``
and the functions that it mentions are compiled to. Libraries are not looked into.
"""

from __future__ import annotations

import builtins
import dis
import functools
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from .classes import ORIGINAL_CLASS
from .plain import RECORDS, Values

_LIBRARIES = {"torch", "fastres", "numpy", *sys.stdlib_module_names}


class OutsideRecord:
    """What some names of a namespace mean: of a module, a class or an object.

    Those that it lacked are still found elsewhere: in an object's class, among Python's own.
    """

    __slots__ = ("_lacking", "_namespace", "_values")

    def __init__(self, namespace: Mapping[str, Any], names: Iterable[str]) -> None:
        self._namespace = namespace
        self._values = Values({name: namespace[name] for name in names if name in namespace})
        self._lacking = [name for name in names if name not in namespace]

    def holds(self, root: nn.Module) -> bool:
        """Whether they mean what they meant."""
        if not self._values.hold(self._namespace):
            return False
        return not any(name in self._namespace for name in self._lacking)


class ClosureRecord:
    """The same of the variables that a function has of the one around it."""

    __slots__ = ("_function", "_values")

    def __init__(self, function: types.FunctionType) -> None:
        self._function = function
        self._values = Values(_closure(function))

    def holds(self, root: nn.Module) -> bool:
        """Whether they mean what they meant."""
        return self._values.hold(_closure(self._function))


def outside_records(modules: Iterable[nn.Module]) -> Iterator[OutsideRecord | ClosureRecord]:
    """Of all that the ``forward`` of each of ``modules``, and what it calls, reads elsewhere."""
    search = _Search()
    classes: set[type] = set()
    for module in modules:
        if type(module) not in classes or "forward" in vars(module):
            classes.add(type(module))
            search.look_into_forward(module)
    yield from search.records()


class _Code(NamedTuple):
    """What a function and those inside it mention."""

    names: frozenset[str]
    """Of globals and attributes."""
    assigned: frozenset[str]
    """Of those, what is assigned: state of the code's own, such as a counter, and no setting."""


class _Search:
    def __init__(self) -> None:
        self._names: dict[int, tuple[Mapping[str, Any], dict[str, None]]] = {}
        self._closures: dict[types.FunctionType, None] = {}
        self._assigned: set[str] = set()
        self._seen: set[tuple[types.FunctionType, int]] = set()
        self._followed: set[tuple[int, frozenset[str]]] = set()

    def records(self) -> Iterator[OutsideRecord | ClosureRecord]:
        for namespace, names in self._names.values():
            yield OutsideRecord(namespace, [n for n in names if n not in self._assigned])
        yield from map(ClosureRecord, self._closures)

    def look_into_forward(self, module: nn.Module) -> None:
        self._look_into(_function_of(vars(module).get("forward")), module)
        self._look_into_methods(module, frozenset({"forward"}))

    def _look_into_methods(self, target: Any, names: frozenset[str]) -> None:
        """Functions of these names of an object's class and those that it derives from."""
        for base in _classes(type(target)):
            for name in names:
                self._look_into(_function_of(vars(base).get(name)), target)

    def _look_into(self, function: types.FunctionType | None, target: Any) -> None:
        """What a function reads, as a method of ``target`` if that is not None."""
        if function is None or _is_of_library(function):
            return
        if (function, id(target)) in self._seen:
            return
        self._seen.add((function, id(target)))
        names, assigned = _mentioned(function.__code__)
        self._assigned.update(assigned)
        self._read(function.__globals__, function.__globals__, names, builtins)
        if function.__closure__:
            self._closures[function] = None
            self._follow(_closure(function).values(), names)
        self._follow([target, *(function.__defaults__ or ())], names)
        self._look_into(_function_of(vars(function).get("__wrapped__")), target)

    def _follow(self, values: Iterable[Any], names: frozenset[str]) -> None:
        """What code that mentions ``names`` reads of values that it has."""
        for value in values:
            if (id(value), names) not in self._followed:
                self._followed.add((id(value), names))
                self._follow_one(value, names)

    def _follow_one(self, value: Any, names: frozenset[str]) -> None:
        function = _function_of(value)
        if function is not None:
            self._look_into(function, getattr(value, "__self__", None))
        elif isinstance(value, nn.Module):  # its attributes and its class are looked at anyway
            self._look_into_methods(value, names)
        elif isinstance(value, type):
            for base in _classes(value):
                self._read(base, vars(base), names)
        elif isinstance(value, (list, tuple)):
            self._follow(value, names)
        elif isinstance(value, dict):
            self._follow(value.values(), names)
        elif isinstance(value, functools.partial):
            self._follow([value.func, *value.args, *value.keywords.values()], names)
        elif isinstance(value, types.ModuleType):
            if not _is_of_library(value):
                self._read(value, vars(value), names)
        elif _has_attributes(value):
            self._read(value, vars(value), names, type(value))
            self._follow([type(value)], names)
            self._look_into_methods(value, names)

    def _read(
        self, owner: Any, namespace: Mapping[str, Any], names: frozenset[str], elsewhere: Any = None
    ) -> None:
        """Notes what ``names`` mean there; of those it lacks, the ones to be found elsewhere."""
        known = self._names.setdefault(id(owner), (namespace, {}))[1]
        there = [name for name in names if name in namespace]
        lacking = [name for name in names if name not in namespace and hasattr(elsewhere, name)]
        known.update(dict.fromkeys([*there, *lacking]))
        self._follow([namespace[name] for name in there], names)


def _classes(cls: type) -> list[type]:
    """What a class derives from, of the user's own."""
    bases = cls.__mro__
    return [b for b in bases if not _is_of_library(b) and ORIGINAL_CLASS not in vars(b)]


def _has_attributes(value: Any) -> bool:
    if isinstance(value, RECORDS):
        return True
    return type(value).__dictoffset__ != 0 and not _is_of_library(value)


def _is_of_library(value: Any) -> bool:
    if isinstance(value, types.ModuleType):
        name: Any = value.__name__
    else:
        named = isinstance(value, (type, types.FunctionType))
        name = (value if named else type(value)).__module__
    return str(name).partition(".")[0] in _LIBRARIES


def _function_of(value: Any) -> types.FunctionType | None:
    """The Python function that a member, a method or a cached function comes to."""
    if isinstance(value, property):
        value = value.fget
    elif isinstance(value, (staticmethod, classmethod, types.MethodType)):
        value = value.__func__
    if isinstance(value, functools._lru_cache_wrapper):
        value = value.__wrapped__
    return value if isinstance(value, types.FunctionType) else None


@functools.lru_cache(maxsize=4096)
def _mentioned(code: types.CodeType) -> _Code:
    assigned = {i.argval for i in dis.get_instructions(code) if i.opname in _ASSIGNMENTS}
    inside = [_mentioned(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return _Code(
        frozenset(code.co_names).union(*(c.names for c in inside)),
        frozenset(assigned).union(*(c.assigned for c in inside)),
    )


_ASSIGNMENTS = {"STORE_ATTR", "STORE_GLOBAL", "DELETE_ATTR", "DELETE_GLOBAL"}


def _closure(function: types.FunctionType) -> dict[str, Any]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells if _is_set(cell)}


def _is_set(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - raises where there is nothing
    except ValueError:
        return False
    return True
