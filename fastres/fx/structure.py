"""Whether a module is still built as it was when it was traced.

A trace freezes every Python value that a ``forward`` looked at: which submodules there are,
strides, flags, training modes. A ``Structure`` remembers them and compares, in well under a
microsecond a module, so that a fused program is never run for a model that has become another one.
The values of parameters and buffers are not its business (``weights/packing.py`` hashes those).
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .classes import ORIGINAL_CLASS, ClassRecord, classes_of
from .outside import ClosureRecord, OutsideRecord, outside_records
from .plain import RECORDS, Values
from .sources import AttributeSource

#: Name of the instance attribute in which an accelerated module keeps its derived state.
STATE = "_fastres"

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")

# Entries of a module's __dict__ on which no result depends, or that are compared elsewhere.
_IGNORED = {
    STATE,
    "_parameters",
    "_buffers",
    "_non_persistent_buffers_set",
    "_is_full_backward_hook",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
}

_FOREIGN = (torch.Tensor, type, types.ModuleType, types.FunctionType)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling ``module`` does more than calling its ``forward``."""
    attributes = module.__dict__
    return any(attributes.get(name) for name in _HOOKS)


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class that the user wrote: what it was before ``accelerate`` put its own in front."""
    return getattr(type(module), ORIGINAL_CLASS, type(module))


class _Record:
    """The attributes of one object, and whether they are what they were."""

    __slots__ = ("_class", "_size", "_target", "_values")

    def __init__(self, target: Any, root: nn.Module, names: Iterable[str] | None = None) -> None:
        attributes = target.__dict__
        self._target = None if target is root else target  # no cycle: del model frees the model
        self._class = type(target)
        self._size = len(attributes) - (STATE in attributes) if names is None else -1
        read = attributes if names is None else [name for name in names if name in attributes]
        self._values = Values({name: attributes[name] for name in read if name not in _IGNORED})

    def holds(self, root: nn.Module) -> bool:
        target = root if self._target is None else self._target
        attributes = target.__dict__
        if type(target) is not self._class:
            return False
        if self._size >= 0 and len(attributes) - (STATE in attributes) != self._size:
            return False
        return self._values.hold(attributes)


class _OwnTensors:
    """Which parameter and buffer objects a module had (not what they hold)."""

    __slots__ = ("_module", "_tensors")

    def __init__(self, module: nn.Module, root: nn.Module) -> None:
        self._module = None if module is root else module
        self._tensors = self._current(module)

    @staticmethod
    def _current(module: nn.Module) -> list[Any]:
        return [*module._parameters.values(), *module._buffers.values()]

    def holds(self, root: nn.Module) -> bool:
        current = self._current(root if self._module is None else self._module)
        return len(current) == len(self._tensors) and all(
            map(lambda a, b: a is b, current, self._tensors)
        )


Facts = tuple[Any, ...]


def facts(tensor: Tensor) -> Facts:
    """A tensor's metadata: shape, strides, dtype, device and so on."""
    strides = tensor.stride() if tensor.layout is torch.strided else None
    return tensor.shape, strides, tensor.dtype, tensor.device, tensor.layout, tensor.requires_grad


class _Metadata:
    """What a tensor's metadata was."""

    __slots__ = ("_module", "_name", "_then")

    def __init__(self, root: nn.Module, path: str, then: Facts) -> None:
        owner, _, self._name = path.rpartition(".")
        self._module = root.get_submodule(owner) if owner else None
        self._then = then

    def holds(self, root: nn.Module) -> bool:
        tensor = AttributeSource(self._module, self._name).read(root, ())
        return tensor is not None and facts(tensor) == self._then


_AnyRecord = ClassRecord | OutsideRecord | ClosureRecord | _Record | _OwnTensors | _Metadata


def configs(module: nn.Module) -> Iterator[Any]:
    """Objects of the user's that ``module`` refers to, such as a config read in ``forward``.

    Plain records among them are looked into, so that nested configs are seen to their ends.
    """
    seen: set[int] = set()
    owners: list[Any] = [module]
    while owners:
        for name, value in owners.pop().__dict__.items():
            if name in _IGNORED or id(value) in seen or not hasattr(value, "__dict__"):
                continue
            if not isinstance(value, (nn.Module, *_FOREIGN)):
                seen.add(id(value))
                yield value
                if isinstance(value, RECORDS) or dataclasses.is_dataclass(value):
                    owners.append(value)


class Structure:
    """How the modules of a trace were built.

    Args:
        root: the module that was traced. It is not kept: ``holds`` is told it again.
        traced: modules whose ``forward`` was traced through, ``root`` among them.
        leaves: modules that the trace calls, and whose attributes it may have read.
        opaque: modules that the trace calls and knows nothing about, such as those with hooks.
        metadata: of the tensors whose metadata it has read what that was, by path.
    """

    def __init__(
        self,
        root: nn.Module,
        traced: Iterable[nn.Module],
        leaves: Iterable[nn.Module],
        opaque: Iterable[nn.Module],
        metadata: dict[str, Facts] | None = None,
    ) -> None:
        traced, leaves = list(traced), list(leaves)
        self._records: list[_AnyRecord] = [
            ClassRecord(cls) for cls in classes_of((*traced, *leaves))
        ]
        self._records.extend(outside_records(traced))
        for module in traced:
            self._records.append(_Record(module, root))
            self._records.extend(_Record(config, root) for config in configs(module))
            if module._parameters or module._buffers:
                self._records.append(_OwnTensors(module, root))
        self._records.extend(_Record(module, root) for module in leaves)
        self._records.extend(_Record(module, root, _HOOKS) for module in opaque)
        self._records.extend(_Metadata(root, path, then) for path, then in (metadata or {}).items())

    def holds(self, root: nn.Module) -> bool:
        """Whether everything is as it was."""
        for record in self._records:  # noqa: SIM110 - at every call, over hundreds of modules
            if not record.holds(root):
                return False
        return True


def plain_view(module: nn.Module, training: bool | None = None) -> nn.Module:
    """A copy of the tree of modules, not accelerated, that shares everything else with ``module``.

    Args:
        module: the root.
        training: the copies' mode; by default, that of the originals.
    """
    copies: dict[int, nn.Module] = {}

    def copy(original: nn.Module) -> nn.Module:
        if isinstance(original, torch.jit.ScriptModule):
            return original
        if id(original) not in copies:
            view: nn.Module = object.__new__(original_class(original))
            copies[id(original)] = view
            attributes = view.__dict__
            attributes.update(original.__dict__)
            attributes.pop(STATE, None)
            attributes["_modules"] = {
                name: child if child is None else copy(child)
                for name, child in original._modules.items()
            }
            if training is not None:
                attributes["training"] = training
        return copies[id(original)]

    root = copy(module)
    for view in copies.values():  # lists of modules that are registered elsewhere, too
        for name, value in view.__dict__.items():
            if type(value) in (list, tuple):
                view.__dict__[name] = type(value)(copies.get(id(item), item) for item in value)
    return root


def eval_view(module: nn.Module) -> nn.Module:
    """The module if it is in eval mode throughout, else a view of it that is.

    Tells what a model will do in eval mode without changing the model.
    """
    if any(inner.training for inner in module.modules()):
        return plain_view(module, training=False)
    return module


def training_view(module: nn.Module) -> nn.Module:
    """The module if it is in training mode, parts of it perhaps not, else a view of it that is."""
    return module if module.training else plain_view(module, training=True)
