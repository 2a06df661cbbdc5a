"""Packed weights of parameters that the user owns and changes.

Parameters change by an optimizer, by ``load_state_dict``, through ``p.data``. So a convolution's
weight is packed where the graph reads it, from the parameter as it is, and dropped after its last
use: it can neither be stale nor stand beside the parameter for longer than one operator takes. What
BatchNorms fold to is small: on the CPU it is kept until the bytes that it was made of change, which
a hash tells; on a GPU, where reading one would wait for everything before it and break a graph's
capture, it is computed anew, all layers at once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from .. import _library
from .._numerics import get_numerics
from ..fx.sources import PLAIN_TYPES, AttributeSource, InputSource, Source
from .folding import fold_all
from .recipes import (
    Fold,
    NormRecipe,
    Recipe,
    Restructured,
    Unusable,
    check_device,
    check_same_device,
)

Staleness = Literal["content", "version"]


def first_number(graph: fx.Graph) -> int:
    """The number of a graph's first constants: above those in the names of what it reads already.

    A model may have attributes with the very names of constants: it may be one that was frozen.
    """
    names = (str(node.target) for node in graph.nodes if node.op in ("get_attr", "call_module"))
    numbers = (name.rpartition("_")[2] for name in names if name.startswith("_"))
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)


def constant_names(recipe: Recipe | NormRecipe, number: int) -> list[str]:
    """What the constants are called that a graph's recipe of this number makes."""
    return [f"_{name}_{number}" for name in recipe.names]


def live_names(number: int) -> tuple[str, str, str]:
    """Names of the weight as it is, the scale and the algorithm of the recipe of this number."""
    return f"_weight_{number}", f"_scale_{number}", f"_algorithm_{number}"


def chain_names(number: int) -> tuple[str, str]:
    """Names of the joined scales and shifts of a graph's live chain of this number."""
    return f"_chain_scale_{number}", f"_chain_shift_{number}"


def settled_constants(
    recipes: Sequence[Recipe | NormRecipe],
    folds: Sequence[Fold],
    images: int | None,
    chains: Sequence[Sequence[int]],
    first: int,
) -> dict[str, Any]:
    """What a graph reads beside weights, by name: shifts and affines, scales and algorithms.

    Args:
        recipes: of the constants.
        folds: what the vectors of each come to.
        images: how many images the call is for; None for any number.
        chains: of each live chain the recipes of its convolutions in turn.
        first: the ``first_number`` of the graph.
    """
    values: dict[str, Any] = {}
    for i, (recipe, fold) in enumerate(zip(recipes, folds, strict=True), first):
        values.update((f"_{name}_{i}", value) for name, value in fold.kept.items())
        if isinstance(recipe, Recipe):
            _, scale, algorithm = live_names(i)
            values[scale], values[algorithm] = fold.scale, recipe.algorithm(images)
    for i, members in enumerate(chains, first):
        values.update(zip(chain_names(i), _joined([folds[m] for m in members]), strict=True))
    return values


def _joined(folds: Sequence[Fold]) -> tuple[Tensor, Tensor]:
    """Scales and shifts of convolutions, one after the other."""
    shifts = [fold.kept["shift"] for fold in folds]
    scales = [
        torch.ones_like(shift) if fold.scale is None else fold.scale
        for fold, shift in zip(folds, shifts, strict=True)
    ]
    return torch.cat(scales), torch.cat(shifts)


def packed_number(name: str) -> int | None:
    """The number of the recipe whose packed weight is called ``name``; None if it is another's."""
    return _number(name, "_packed")


def live_number(name: str) -> int | None:
    """The number of the recipe whose weight as it is is called so; None if it is another's."""
    return _number(name, "_weight")


def _number(name: str, kind: str) -> int | None:
    prefix, _, digits = name.rpartition("_")
    return int(digits) if prefix == kind and digits.isdigit() else None


class Constants:
    """What a graph reads at one call: ``_packed_i``, ``_shift_i`` and so on, for each recipe.

    Args:
        recipes: of the constants.
        weights: the leading tensor of each, for a convolution its weight.
        folds: what the vectors of each come to.
        images: how many images the call is for; None to pack for calls of any size.
        weight_names: what the graph calls the weights as they are.
        settled: what it reads beside them, of ``settled_constants``.
        packed: the packed weights that are kept between calls, by recipe; added to.
        keys: what tells that a kept one is up to date, None for those not to be kept.
        first: the ``first_number`` of the graph.
    """

    def __init__(
        self,
        recipes: Sequence[Recipe | NormRecipe],
        weights: Sequence[Tensor],
        folds: Sequence[Fold],
        images: int | None,
        weight_names: Sequence[str],
        settled: dict[str, Any],
        packed: dict[int, tuple[Any, Tensor]],
        keys: Sequence[Any],
        first: int,
    ) -> None:
        self.first = first
        self._packed = packed
        self._keys = keys
        self._recipes = recipes
        self.weights = weights
        """Of each recipe; for a BatchNorm that stands alone its mean. All on one device."""
        self._folds = folds
        self._images = images
        self._weight_names = weight_names
        self._settled = settled

    def kept(self) -> dict[str, Any]:
        """All but the packed weights, by name: what is there already."""
        values = dict(self._settled)
        values.update(zip(self._weight_names, self.weights, strict=True))
        return values

    def pack(self, number: int) -> Tensor:
        """The packed weight of the recipe of this number: made now, unless one is kept."""
        index = number - self.first
        recipe, weight = self._recipes[index], self.weights[index]
        assert isinstance(recipe, Recipe)
        scale, key = self._folds[index].scale, self._keys[index]
        if key is None:
            return recipe.pack(weight, scale, self._images)
        known, packed = self._packed.get(index, (None, None))
        if packed is None or known != key:
            # Not an inference tensor, whatever mode this call is made in: it outlives it.
            with torch.inference_mode(False), torch.no_grad():
                packed = recipe.pack(weight, scale, None)
            self._packed[index] = key, packed
        return packed

    def all(self) -> dict[str, Tensor]:
        """All of a graph's constants, by name."""
        values = {}
        pairs = zip(self._recipes, self._folds, strict=True)
        for i, (recipe, fold) in enumerate(pairs, self.first):
            for name in recipe.names:
                value = self.pack(i) if name == "packed" else fold.kept[name]
                values[f"_{name}_{i}"] = value
        return values


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
    """What was folded last, and from what."""

    backend: str
    """Which decides on the hash."""
    stamp: list[Any]
    result: list[Fold] | Unusable

    def folds(self) -> list[Fold]:
        """The result.

        Raises:
            Unusable: there is none.
        """
        if isinstance(self.result, Unusable):
            raise self.result
        return self.result


class Packer:
    """Makes ``Constants`` of the tensors that they are made of, as these are at each call.

    Args:
        recipes: what to pack.
        root: the module that sources without a module are attributes of (it is not kept).
        staleness: "content" packs each weight where it is used; "version" keeps the packed weights
            until a version counter or an address changes, which costs their memory, and is blind to
            ``p.data.mul_(2)``. The vectors (biases, BatchNorm) are hashed either way: they are
            small, and training-mode BatchNorm updates its statistics without counting versions. The
            hash waits for a GPU; while a CUDA graph is captured they are taken to be as before.
        chains: of each live chain of the graph the recipes of its convolutions in turn.
        first: the ``first_number`` of the graph.
    """

    def __init__(
        self,
        recipes: Sequence[Recipe | NormRecipe],
        root: nn.Module | None,
        staleness: Staleness,
        chains: Sequence[Sequence[int]] = (),
        first: int = 0,
    ) -> None:
        self._first = first
        self._recipes = list(recipes)
        self._chains = chains
        self._by_version = staleness == "version"
        wanted = (s for r in recipes for s in (r.leading, *r.folded_sources()))
        sources = dict.fromkeys(s for s in wanted if s is not None)
        attributes = [s for s in sources if isinstance(s, AttributeSource)]
        inputs = [s for s in sources if isinstance(s, InputSource)]
        self._slots = [_slot(source, root) for source in attributes]
        self._inputs = [source.index for source in inputs]
        ordered: list[Source] = [*attributes, *inputs]
        position: dict[Source | None, int] = {s: i for i, s in enumerate(ordered)}
        self._weights = [position[recipe.leading] for recipe in recipes]
        self._folded = [
            [position.get(source, -1) for source in recipe.folded_sources()] for recipe in recipes
        ]
        used = dict.fromkeys(p for positions in self._folded for p in positions if p >= 0)
        self._vectors = list(used)
        self._lock = threading.Lock()
        self._state: _State | None = None
        self._packed: dict[int, tuple[Any, Tensor]] = {}
        self._weight_names = [live_names(first + i)[0] for i in range(len(self._recipes))]
        self._settled: tuple[Any, Any, dict[str, Any]] = None, None, {}

    def constants(
        self, root: nn.Module | None, inputs: Sequence[Any] = (), images: int | None = None
    ) -> Constants:
        """The constants of the parameters as they are now.

        Args:
            root: the module that sources without a module are attributes of.
            inputs: what sources that are inputs read.
            images: how many images the call is for; None to pack for calls of any size.

        Raises:
            Restructured: a parameter that there has to be is gone, or has another shape.
            Unusable: the kernels cannot run with the parameters.
        """
        tensors = self._read(root, inputs)
        weights = [
            recipe.checked(tensors[position])
            for recipe, position in zip(self._recipes, self._weights, strict=True)
        ]
        for weight in weights:
            check_same_device(weight, weights[0])
        folds = self._fold(tensors, weights)
        keys = self._keys(weights, folds) if self._by_version else [None] * len(weights)
        settled = self._settled_for(folds, images)
        names, first = self._weight_names, self._first
        return Constants(
            self._recipes, weights, folds, images, names, settled, self._packed, keys, first
        )

    def _settled_for(self, folds: list[Fold], images: int | None) -> dict[str, Any]:
        """``settled_constants``, made again only for another fold, number of images or numerics."""
        key = images, get_numerics()
        known_folds, known_key, settled = self._settled
        if known_folds is not folds or known_key != key:
            # Not inference tensors, whatever mode this call is made in: they outlive it.
            with torch.inference_mode(False), torch.no_grad():
                settled = settled_constants(self._recipes, folds, images, self._chains, self._first)
            self._settled = folds, key, settled
        return settled

    def _read(self, root: nn.Module | None, inputs: Sequence[Any]) -> list[Tensor | None]:
        try:
            tensors: list[Tensor | None] = [
                (root.__dict__ if base is None else base)[key][name]
                for base, key, name in self._slots
            ]
        except KeyError as error:
            raise Restructured(f"attribute {error.args[0]!r} is gone") from None
        tensors.extend([inputs[index] for index in self._inputs])
        if not PLAIN_TYPES.issuperset(map(type, tensors)):
            raise Unusable("a parameter is of a type of its own")
        if tensors[0] is not None:
            check_device(tensors[0])
        return tensors

    def _fold(self, tensors: list[Tensor | None], weights: list[Tensor]) -> list[Fold]:
        on_gpu = weights[0].device.type != "cpu"
        if on_gpu and not self._by_version:
            with torch.no_grad():
                return fold_all(self._recipes, weights, self._vectors_of(tensors))
        state = self._state
        if on_gpu and torch.cuda.is_current_stream_capturing():
            if state is None:
                raise Unusable("no call was made before the capture of a CUDA graph")
            return state.folds()
        backend = _library.get_backend()
        stamp = self._stamp(tensors, weights)
        if state is None or state.backend != backend or state.stamp != stamp:
            with self._lock:
                state = self._update(backend, stamp, tensors, weights)
        return state.folds()

    def _vectors_of(self, tensors: list[Tensor | None]) -> list[list[Tensor | None]]:
        """What each recipe is folded of."""
        return [[None if p < 0 else tensors[p] for p in positions] for positions in self._folded]

    def _stamp(self, tensors: list[Tensor | None], weights: list[Tensor]) -> list[Any]:
        """Something that is another when what the folds are made of is."""
        given = [(p, tensor) for p in self._vectors if (tensor := tensors[p]) is not None]
        hashes = torch.ops.fastres.content_hash.default([tensor for _, tensor in given])
        return [*(p for p, _ in given), *hashes, *(weight.dtype for weight in weights)]

    def _update(
        self,
        backend: str,
        stamp: list[Any],
        tensors: list[Tensor | None],
        weights: list[Tensor],
    ) -> _State:
        old = self._state
        if old is not None and (old.backend, old.stamp) == (backend, stamp):
            return old  # another thread was faster
        result: list[Fold] | Unusable
        try:
            # Not inference tensors, whatever mode this call is made in: they outlive it.
            with torch.inference_mode(False), torch.no_grad():
                result = fold_all(self._recipes, weights, self._vectors_of(tensors))
        except Unusable as error:
            result = error
        state = self._state = _State(backend, stamp, result)
        return state

    def _keys(self, weights: list[Tensor], folds: list[Fold]) -> list[Any]:
        """For each recipe, what tells that a packed weight is up to date; None to keep none."""
        settings = _library.get_backend(), get_numerics()
        return [
            None
            if weight.is_inference()
            else _Version(weight, weight._version, weight.data_ptr(), fold, settings)
            for weight, fold in zip(weights, folds, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class _Version:
    """What a packed weight was made of; with the objects, so that no later ones have their id."""

    weight: Tensor
    version: int
    address: int
    fold: Fold
    settings: tuple[str, str]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Version)
            and self.weight is other.weight  # by identity: == would compare elements
            and self.fold is other.fold
            and (self.version, self.address) == (other.version, other.address)
            and self.settings == other.settings
        )

    __hash__ = None  # type: ignore[assignment]
