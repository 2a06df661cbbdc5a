"""Plain data, which can be copied and compared by content."""

from __future__ import annotations

import argparse
import types
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

import torch
from torch import nn

_ATOMS = (
    type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device,
    torch.memory_format, torch.layout, types.FunctionType, types.BuiltinFunctionType,
    types.MethodType, types.ModuleType,
)  # fmt: skip


#: Objects that hold values and do nothing else.
RECORDS = (types.SimpleNamespace, argparse.Namespace)


def copy_plain(value: object) -> tuple[bool, Any]:
    """(True, a copy that == compares by content) for plain data; (False, None) for the rest."""
    if isinstance(value, nn.Module) or type(value) in _ATOMS or isinstance(value, type):
        return True, value
    if isinstance(value, (list, tuple, set, frozenset)) and type(value).__module__ in (
        "builtins",
        "torch",
    ):
        copies = [copy_plain(item) for item in value]
        return all(ok for ok, _ in copies), type(value)(copy for _, copy in copies)
    if isinstance(value, dict):
        items = [(key, copy_plain(item)) for key, item in value.items()]
        return all(ok for _, (ok, _) in items), {key: copy for key, (_, copy) in items}
    return False, None


class Values:
    """The values that a mapping has for some names, and whether they are what they were.

    Plain data is compared by content, anything else has to be the same object.
    """

    __slots__ = ("_get", "_plain", "_same")

    def __init__(self, values: dict[str, Any]) -> None:
        plain: dict[str, Any] = {}
        same: list[tuple[str, Any]] = []
        for name, value in values.items():
            is_plain, copy = copy_plain(value)
            if is_plain:
                plain[name] = copy
            else:
                same.append((name, value))
        self._get = _getter(list(plain))
        self._plain = tuple(plain.values())
        self._same = tuple(same)

    def hold(self, attributes: Mapping[str, Any]) -> bool:
        """Whether ``attributes`` has all of them."""
        try:
            if self._get(attributes) != self._plain:
                return False
        except KeyError:
            return False
        for name, value in self._same:  # noqa: SIM110 - a generator takes as long as the rest
            if attributes.get(name) is not value:
                return False
        return True


def _getter(names: list[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    if not names:
        return lambda attributes: ()
    if len(names) == 1:
        return lambda attributes: (attributes[names[0]],)
    return itemgetter(*names)
