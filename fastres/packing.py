"""Keeps packed weights in step with the parameters that they are made of.

Packed weights are derived from parameters that the user owns and changes: by an optimizer, by
``load_state_dict``, through ``p.data``. So before each use the parameters' bytes are hashed, and
what changed is packed again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import _library
from ._numerics import get_numerics
from .fx.sources import AttributeSource, InputSource, Source
from .recipes import NormRecipe, Recipe, Restructured, Unusable, check_device

Staleness = Literal["content", "version"]

_PLAIN = {Tensor, nn.Parameter, type(None)}


@dataclass(frozen=True)
class Constants:
    """One consistent set of what the recipes make: ``_packed_i`` and ``_shift_i``, and so on."""

    values: dict[str, Tensor]
    weight_dtypes: tuple[torch.dtype, ...]


def constant_names(recipe: Recipe | NormRecipe, index: int) -> list[str]:
    """What the constants are called that a graph's recipe ``index`` makes."""
    return [f"_{name}_{index}" for name in recipe.names]


# How a tensor is found at each call: (a module's __dict__ or None for the root's, key, name).
_Slot = tuple[Any, str, str]


def _slot(source: AttributeSource, root: nn.Module | None) -> _Slot:
    module = root if source.module is None else source.module
    assert module is not None
    base = None if source.module is None else module.__dict__
    for key in ("_parameters", "_buffers"):
        if source.name in module.__dict__[key]:
            return base, key, source.name
    return {"": module.__dict__}, "", source.name


@dataclass(frozen=True)
class _State:
    """What was packed last, and from what."""

    settings: tuple[str, str]
    """Backend, which decides on the layout, and numerics, which decide on the algorithm."""
    stamp: list[Any]
    result: Constants | Unusable


class Packer:
    """Keeps ``Constants`` up to date with the tensors that they are made of.

    Args:
        recipes: what to pack.
        root: the module that sources without a module are attributes of (it is not kept).
        staleness: how changed weights are found. "content" hashes every byte; "version" compares
            version counters and addresses, which is free and blind to ``p.data.mul_(2)``. The
            vectors (biases, BatchNorm) are hashed either way: they are small, and training-mode
            BatchNorm updates its statistics without counting versions.
    """

    def __init__(
        self,
        recipes: Sequence[Recipe | NormRecipe],
        root: nn.Module | None,
        staleness: Staleness,
    ) -> None:
        self._recipes = list(recipes)
        self._by_version = staleness == "version"
        sources = dict.fromkeys(s for r in recipes for s in r.sources() if s is not None)
        attributes = [s for s in sources if isinstance(s, AttributeSource)]
        inputs = [s for s in sources if isinstance(s, InputSource)]
        self._slots = [_slot(source, root) for source in attributes]
        self._inputs = [source.index for source in inputs]
        ordered: list[Source] = [*attributes, *inputs]
        position: dict[Source | None, int] = {s: i for i, s in enumerate(ordered)}
        self._positions = [
            [position.get(source, -1) for source in recipe.sources()] for recipe in recipes
        ]
        self._lock = threading.Lock()
        self._state: _State | None = None

    def constants(self, root: nn.Module | None, inputs: Sequence[Any] = ()) -> Constants:
        """The packed weights of the parameters as they are now.

        Raises:
            Restructured: a parameter that there has to be is gone, or has another shape.
            Unusable: the kernels cannot run with the parameters.
        """
        tensors = self._read(root, inputs)
        stamp = self._stamp(tensors)
        settings = (_library.get_backend(), get_numerics())
        state = self._state
        if state is None or state.settings != settings or state.stamp != stamp:
            with self._lock:
                state = self._update(settings, stamp, tensors)
        if isinstance(state.result, Unusable):
            raise state.result
        return state.result

    def _read(self, root: nn.Module | None, inputs: Sequence[Any]) -> list[Tensor | None]:
        try:
            tensors: list[Tensor | None] = [
                (root.__dict__ if base is None else base)[key][name]
                for base, key, name in self._slots
            ]
        except KeyError as error:
            raise Restructured(f"attribute {error.args[0]!r} is gone") from None
        tensors.extend([inputs[index] for index in self._inputs])
        if not _PLAIN.issuperset(map(type, tensors)):
            raise Unusable("a parameter is of a type of its own")
        if tensors[0] is not None:
            check_device(tensors[0])
        return tensors

    def _stamp(self, tensors: list[Tensor | None]) -> list[Any]:
        """For each tensor, something that is another when the tensor is."""
        stamp: list[Any] = [None] * len(tensors)
        hashed = []
        for index, tensor in enumerate(tensors):
            if tensor is None:
                continue
            if self._by_version and tensor.dim() == 4 and not tensor.is_inference():
                # With the tensor itself, so that no later one can have its id.
                stamp[index] = _Version((tensor, tensor._version, tensor.data_ptr()))
            else:
                hashed.append(index)
        hashes = torch.ops.fastres.content_hash.default([tensors[index] for index in hashed])
        for index, value in zip(hashed, hashes, strict=True):
            stamp[index] = value
        return stamp

    def _update(
        self, settings: tuple[str, str], stamp: list[Any], tensors: list[Tensor | None]
    ) -> _State:
        old = self._state
        if old is not None and old.settings != settings:
            old = None
        if old is not None and old.stamp == stamp:  # another thread was faster
            return old
        result: Constants | Unusable
        try:
            # Not inference tensors, whatever mode this call is made in: they outlive it.
            with torch.inference_mode(False), torch.no_grad():
                result = self._pack(stamp, tensors, old)
        except Unusable as error:
            result = error
        state = self._state = _State(settings, stamp, result)
        return state

    def _pack(
        self, stamp: list[Any], tensors: list[Tensor | None], old: _State | None
    ) -> Constants:
        values: dict[str, Tensor] = {}
        dtypes = []
        for index, recipe in enumerate(self._recipes):
            positions = self._positions[index]
            names = constant_names(recipe, index)
            if (
                old is not None
                and isinstance(old.result, Constants)
                and all(p < 0 or old.stamp[p] == stamp[p] for p in positions)
            ):
                values.update({name: old.result.values[name] for name in names})
                dtypes.append(old.result.weight_dtypes[index])
                continue
            given = [None if p < 0 else tensors[p] for p in positions]
            values.update(zip(names, recipe.pack(given), strict=True))
            dtypes.append(given[0].dtype)  # type: ignore[union-attr]
        return Constants(values, tuple(dtypes))


class _Version(tuple[Any, ...]):
    """A tensor's version. Compares the tensor by identity; a tuple would compare its elements."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Version) and self[0] is other[0] and self[1:] == other[1:]

    __hash__ = None  # type: ignore[assignment]
