"""Folds BatchNorm into packed weights, and keeps the result in step with the parameters.

Packed weights are derived from parameters that the user owns and changes: by an optimizer, by
``load_state_dict``, through ``p.data``. So before each use the parameters' bytes are hashed, and
what changed is packed again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
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


_PLAIN = {Tensor, nn.Parameter}


class Unusable(Exception):
    """The kernels cannot run with the parameters as they are now; says why."""


@dataclass(frozen=True)
class Recipe:
    """What a packed weight and its shift are made of."""

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
        weight, bias, mean, var, gamma, beta = tensors
        if weight is None:
            raise Unusable("a convolution lost its weight")
        self._check(weight, tensors)
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

    def _check(self, weight: Tensor, tensors: Sequence[Tensor | None]) -> None:
        if tuple(weight.shape) != self.weight_shape:
            raise Unusable(f"a weight's shape became {list(weight.shape)}")
        if weight.dtype not in DTYPES:
            raise Unusable(f"there is no kernel for {weight.dtype} weights")
        for tensor in tensors:
            if tensor is None:
                continue
            check_device(tensor)
            if tensor is not weight and tensor.shape != weight.shape[:1]:
                raise Unusable(f"a parameter of {weight.shape[0]} channels has {tensor.shape}")


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


class Packer:
    """Keeps ``Constants`` up to date with the tensors that they are made of.

    Args:
        recipes: what to pack.
        root: the module that sources without a module are attributes of (it is not kept).
        staleness: how changes are found. "content" hashes every byte; "version" compares version
            counters and addresses, which is free and blind to ``p.data.mul_(2)``.
    """

    def __init__(
        self, recipes: Sequence[Recipe], root: nn.Module | None, staleness: Staleness
    ) -> None:
        self._recipes = list(recipes)
        self._stamp_of: Callable[[list[Tensor]], list[Any]] = _STAMPS[staleness]
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
        self._state: tuple[Any, list[Any], Constants | Unusable] | None = None

    def constants(self, root: nn.Module | None, inputs: Sequence[Any] = ()) -> Constants:
        """The packed weights of the parameters as they are now.

        Raises:
            Unusable: the kernels cannot run with them.
        """
        tensors = self._read(root, inputs)
        stamp = self._stamp_of(tensors)
        # Each backend may want another layout, and numerics choose the algorithm.
        settings = f"{_library.get_backend()} {get_numerics()}"
        state = self._state
        if state is None or state[0] != settings or state[1] != stamp:
            with self._lock:
                state = self._update(settings, stamp, tensors)
        if isinstance(state[2], Unusable):
            raise state[2]
        return state[2]

    def _read(self, root: nn.Module | None, inputs: Sequence[Any]) -> list[Tensor]:
        try:
            tensors = [
                (root.__dict__ if base is None else base)[key][name]
                for base, key, name in self._slots
            ]
        except KeyError as error:
            raise Unusable(f"attribute {error.args[0]!r} is gone") from None
        tensors.extend([inputs[index] for index in self._inputs])
        if not _PLAIN.issuperset(map(type, tensors)):
            raise Unusable("a parameter is None or of a type of its own")
        check_device(tensors[0])
        return tensors

    def _update(
        self, settings: str, stamp: list[Any], tensors: list[Tensor]
    ) -> tuple[Any, list[Any], Constants | Unusable]:
        old = self._state if self._state is not None and self._state[0] == settings else None
        if old is not None and old[1] == stamp:  # another thread was faster
            return old
        result: Constants | Unusable
        try:
            # Not inference tensors, whatever mode this call is made in: they outlive it.
            with torch.inference_mode(False), torch.no_grad():
                result = self._pack(stamp, tensors, old)
        except Unusable as error:
            result = error
        self._state = (settings, stamp, result)
        return self._state

    def _pack(
        self,
        stamp: list[Any],
        tensors: list[Tensor],
        old: tuple[Any, list[Any], Constants | Unusable] | None,
    ) -> Constants:
        values: dict[str, Tensor] = {}
        dtypes = []
        for index, (recipe, positions) in enumerate(
            zip(self._recipes, self._positions, strict=True)
        ):
            names = constant_names(index)
            if (
                old is not None
                and isinstance(old[2], Constants)
                and all(p < 0 or old[1][p] == stamp[p] for p in positions)
            ):
                values.update({name: old[2].values[name] for name in names})
            else:
                given = [tensors[p].detach() if p >= 0 else None for p in positions]
                values.update(zip(names, recipe.pack(given), strict=True))
            dtypes.append(tensors[positions[0]].dtype)
        return Constants(values, tuple(dtypes))


def _content_stamp(tensors: list[Tensor]) -> list[Any]:
    return torch.ops.fastres.content_hash.default(tensors)


def _version_stamp(tensors: list[Tensor]) -> list[Any]:
    if any(tensor.is_inference() for tensor in tensors):  # these count no versions
        return _content_stamp(tensors)
    # The tensor itself is part of it, so that no new one can have its id.
    return [_Identity((tensor, tensor._version, tensor.data_ptr())) for tensor in tensors]


class _Identity(tuple[Any, ...]):
    """Compares tensors by identity; as elements of a tuple they would compare by value."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self[0] is other[0] and self[1:] == other[1:]

    __hash__ = None  # type: ignore[assignment]


_STAMPS: dict[str, Callable[[list[Tensor]], list[Any]]] = {
    "content": _content_stamp,
    "version": _version_stamp,
}
