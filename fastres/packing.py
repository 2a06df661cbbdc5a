"""Folds BatchNorm into packed weights, and keeps the result in step with the parameters.

Packed weights are derived from parameters that the user owns and changes: by an optimizer, by
``load_state_dict``, through ``p.data``. So before each use the parameters' bytes are hashed, and
what changed is packed again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import _library
from ._numerics import get_numerics
from .fx.patterns import Conv, Norm
from .fx.sources import AttributeSource, InputSource, Source
from .ops import pack_conv_weight

Staleness = Literal["content", "version"]

#: Where a fused graph can run, and the dtypes of weights and activations.
DEVICES = ("cpu",)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


_PLAIN = {Tensor, nn.Parameter, type(None)}


class Unusable(Exception):
    """The kernels cannot run with the parameters as they are now; says why."""


class Restructured(Unusable):
    """The parameters are no longer those that the graph was made for."""


@dataclass(frozen=True)
class Recipe:
    """What a packed weight and its shift are made of. Biases, gamma and beta may be None."""

    weight: Source
    bias: Source | None
    weight_shape: tuple[int, int, int, int]
    groups: int
    unit_step: bool
    """Whether stride and dilation are 1."""
    mean: Source | None = None
    var: Source | None = None
    gamma: Source | None = None
    beta: Source | None = None
    eps: float = 0.0

    @classmethod
    def of(cls, conv: Conv, norm: Norm | None) -> Recipe:
        """The recipe of a convolution and the BatchNorm behind it."""
        unit_step = conv.stride == (1, 1) and conv.dilation == (1, 1)
        recipe = cls(conv.weight, conv.bias, conv.weight_shape, conv.groups, unit_step)
        if norm is None:
            return recipe
        return replace(
            recipe, mean=norm.mean, var=norm.var, gamma=norm.weight, beta=norm.bias, eps=norm.eps
        )

    def sources(self) -> list[Source | None]:
        """All of them, in the order that ``pack`` takes their tensors."""
        return [self.weight, self.bias, self.mean, self.var, self.gamma, self.beta]

    def pack(self, tensors: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """The packed weight (1-D uint8) and the shift ([K], float32).

        The fold is done in float64 and rounded once: with BatchNorm,
        ``scale = gamma / sqrt(var + eps)`` and ``shift = beta + (bias - mean) * scale``.

        Raises:
            Unusable: a tensor has a dtype, device or shape that the kernels do not take.
        """
        weight, *vectors = (None if t is None else t.detach() for t in tensors)
        bias, mean, var, gamma, beta = vectors
        if weight is None or (self.mean is not None and (mean is None or var is None)):
            raise Restructured("a weight or statistics are gone")
        self._check(weight, vectors)
        shift = torch.zeros(weight.shape[0], dtype=torch.float64)
        if bias is not None:
            shift = bias.double()
        scale = None
        if mean is not None and var is not None:
            scale = (var.double() + self.eps).rsqrt()
            if gamma is not None:
                scale = scale * gamma.double()
            shift = (shift - mean.double()) * scale
            if beta is not None:
                shift = shift + beta.double()
            scale = scale.float()
        return pack_conv_weight(weight, scale, self.groups, self.algorithm()), shift.float()

    def algorithm(self) -> str:
        """What ``pack_conv_weight`` calls the algorithm to use, as numerics allow.

        Winograd wins wherever there are a few vectors of channels to amortise its transforms:
        1.3 to 2 times on every dense 3x3 of ResNet, from 56x56x64 to 7x7x512.
        """
        out_channels, in_channels, *kernel = self.weight_shape
        dense = self.groups == 1 and self.unit_step and kernel == [3, 3]
        if dense and min(out_channels, in_channels) >= 16 and get_numerics() == "fast":
            return "winograd"
        return "direct"

    def _check(self, weight: Tensor, vectors: Sequence[Tensor | None]) -> None:
        if tuple(weight.shape) != self.weight_shape:
            raise Restructured(f"a weight's shape became {list(weight.shape)}")
        if weight.dtype not in DTYPES:
            raise Unusable(f"there is no kernel for {weight.dtype} weights")
        check_device(weight)
        for vector in vectors:
            if vector is None:
                continue
            check_device(vector)
            if vector.shape != weight.shape[:1]:
                raise Unusable(f"a vector for {len(weight)} channels has shape {[*vector.shape]}")


def check_device(tensor: Tensor) -> None:
    """Raises Unusable unless there are kernels for the tensor's device."""
    if tensor.device.type not in DEVICES:
        raise Unusable(f"there is no kernel for device {tensor.device.type!r}")


@dataclass(frozen=True)
class Constants:
    """One consistent set of packed weights, ``_packed_i`` and ``_shift_i`` for recipe i."""

    values: dict[str, Tensor]
    weight_dtypes: tuple[torch.dtype, ...]


def constant_names(index: int) -> tuple[str, str]:
    """Names of the packed weight and the shift of a graph's recipe ``index``."""
    return f"_packed_{index}", f"_shift_{index}"


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
        self, recipes: Sequence[Recipe], root: nn.Module | None, staleness: Staleness
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
            names = constant_names(index)
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
