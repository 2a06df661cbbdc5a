"""How parameters become an operator's constants.

A convolution, and what scales and shifts its channels, becomes a packed weight and a shift; a
BatchNorm that follows no convolution becomes an affine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import ops as _ops  # noqa: F401  (defines torch.ops.fastres)
from .._numerics import get_numerics
from ..fx.expressions import Expression, Factor
from ..fx.readings import Affine, Conv, Norm
from ..fx.sources import Source
from ..schema.packed_weight import suits_bfloat16
from .algorithm import for_output, multiplies_bfloat16

#: Where a fused graph can run, and the dtypes of weights and activations.
DEVICES = ("cpu", "cuda")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Unusable(Exception):
    """The kernels cannot run with the parameters as they are now; says why."""


class Restructured(Unusable):
    """The parameters are no longer those that the graph was made for."""


@dataclass(frozen=True)
class NormStep:
    """BatchNorm with stored statistics: ``(y - mean) / sqrt(var + eps) * gamma + beta``."""

    mean: Source
    var: Source
    gamma: Source | None
    beta: Source | None
    eps: float

    def sources(self) -> list[Source | None]:
        """In the order that ``factors`` takes their tensors; gamma and beta may be None."""
        return [self.mean, self.var, self.gamma, self.beta]

    def factors(self, tensors: Sequence[Tensor | None], weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, [K], float64."""
        for vector in tensors:
            check_vector(vector, weight)
        return norm_factors(tensors, self.eps)


def norm_factors(tensors: Sequence[Tensor | None], eps: float) -> tuple[Tensor, Tensor]:
    """Scale and shift, float64, of a BatchNorm's mean, variance, gamma and beta.

    Raises:
        Restructured: there are no statistics.
    """
    mean, var, gamma, beta = (None if t is None else t.double() for t in tensors)
    if mean is None or var is None:
        raise Restructured("a BatchNorm's statistics are gone")
    scale = (var + eps).rsqrt()
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale
    return scale, shift if beta is None else shift + beta


@dataclass(frozen=True)
class AffineStep:
    """Multiplication and addition of what is computed from parameters: ``y * scale + shift``."""

    scale: Factor
    shift: Factor

    def sources(self) -> list[Source | None]:
        """In the order that ``factors`` takes their tensors."""
        return [s for factor in self._expressions() for s in factor.sources]

    def _expressions(self) -> list[Expression]:
        return [f for f in (self.scale, self.shift) if isinstance(f, Expression)]

    def factors(self, tensors: Sequence[Tensor | None], weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, [K], float64."""
        given = iter(tensors)
        return self._value(self.scale, given, weight), self._value(self.shift, given, weight)

    @staticmethod
    def _value(factor: Factor, given: Iterator[Tensor | None], weight: Tensor) -> Tensor:
        if isinstance(factor, float):
            return weight.new_full(weight.shape[:1], factor, dtype=torch.float64)
        tensors = [next(given) for _ in factor.sources]
        if any(tensor is None or tensor.dtype != weight.dtype for tensor in tensors):
            raise Unusable("a convolution and its scale differ in dtype")
        value = factor.evaluate([tensor.double() for tensor in tensors if tensor is not None])
        if tuple(value.shape) != factor.shape:
            raise Restructured(f"a scale's shape became {list(value.shape)}")
        return value.reshape(-1).expand(weight.shape[:1])


Step = NormStep | AffineStep


@dataclass(frozen=True, eq=False)
class Fold:
    """What a recipe's vectors come to."""

    kept: dict[str, Tensor]
    """Constants of the graph, by the recipe's names: [K], float32."""
    scale: Tensor | None = None
    """Of the weight, [K], float32; None for 1."""


# Weights of more input times output channels, for less images, are not worth Winograd's transform
# at each call.
_WIDE = 256 * 256
_MANY_IMAGES = 4


@dataclass(frozen=True)
class Recipe:
    """What a packed weight and its shift are made of. The bias may be None."""

    #: The graph's constants.
    names: ClassVar[tuple[str, ...]] = ("packed", "shift")
    weight: Source
    bias: Source | None
    weight_shape: tuple[int, int, int, int]
    groups: int
    suits_winograd: bool
    steps: tuple[Step, ...] = ()
    """What happens to the convolution's output, in order."""

    @classmethod
    def of(cls, conv: Conv, steps: Sequence[Norm | Affine]) -> Recipe:
        """The recipe of a convolution and what scales and shifts its channels after it."""
        return cls(
            conv.weight,
            conv.bias,
            conv.weight_shape,
            conv.groups,
            conv.suits_winograd,
            tuple(map(_step, steps)),
        )

    @property
    def leading(self) -> Source:
        """The tensor whose dtype has to be the input's."""
        return self.weight

    def folded_sources(self) -> list[Source | None]:
        """All but the weight, in the order that ``fold`` takes their tensors."""
        return [self.bias, *(s for step in self.steps for s in step.sources())]

    def checked(self, weight: Tensor | None) -> Tensor:
        """The weight.

        Raises:
            Unusable: it has a dtype, device or shape that the kernels do not take.
        """
        if weight is None:
            raise Restructured("a convolution's weight is gone")
        if weight.shape != self.weight_shape:
            raise Restructured(f"a weight's shape became {list(weight.shape)}")
        if weight.dtype not in DTYPES:
            raise Unusable(f"there is no kernel for {weight.dtype} weights")
        check_device(weight)
        return weight

    def fold(self, weight: Tensor, tensors: Sequence[Tensor | None]) -> Fold:
        """What the bias and the steps come to, computed in float64 and rounded once.

        Raises:
            Unusable: a tensor has a dtype, device or shape that the kernels do not take.
        """
        bias, *rest = (None if tensor is None else tensor.detach() for tensor in tensors)
        check_vector(bias, weight)
        scale = weight.new_ones(weight.shape[:1], dtype=torch.float64)
        shift = torch.zeros_like(scale) if bias is None else bias.double()
        for step in self.steps:
            count = len(step.sources())
            step_scale, step_shift = step.factors(rest[:count], weight)
            rest = rest[count:]
            scale, shift = scale * step_scale, shift * step_scale + step_shift
        return Fold({"shift": shift.float()}, scale.float() if self.steps else None)

    def pack(self, weight: Tensor, scale: Tensor | None, images: int | None) -> Tensor:
        """The packed weight, 1-D uint8.

        Args:
            weight: a ``checked`` one.
            scale: of its ``fold``.
            images: how many images it is packed for; None for any number.
        """
        return torch.ops.fastres.pack_conv_weight.default(
            weight, scale, self.groups, self.algorithm(images, weight.dtype)
        )

    def algorithm(self, images: int | None = None, dtype: torch.dtype = torch.float32) -> str:
        """What ``pack_conv_weight`` calls the algorithm to use, as numerics allow.

        A bfloat16 weight is packed as one where the processor multiplies it so. Else Winograd
        wherever it suits and pays, but for the wide weights: they see so few pixels that
        transforming them takes what a small batch would gain.

        Args:
            images: how many images a weight is packed for; None for any number.
            dtype: of the weight.
        """
        suits = dtype == torch.bfloat16 and suits_bfloat16(self.weight_shape, self.groups)
        if suits and multiplies_bfloat16():
            return "bfloat16"
        if not self.suits_winograd or get_numerics() != "fast":
            return "direct"
        out_channels, in_channels, *_ = self.weight_shape
        wide = out_channels * in_channels > _WIDE
        if wide and images is not None and images < _MANY_IMAGES:
            return "direct"
        return for_output("winograd", in_channels, dtype)


@dataclass(frozen=True)
class NormRecipe:
    """What the affine of a BatchNorm that stands alone is made of."""

    norm: NormStep

    #: The graph's constants, of ``(x - mean) * scale + bias``.
    names: ClassVar[tuple[str, ...]] = ("mean", "scale", "bias")

    @classmethod
    def of(cls, norm: Norm) -> NormRecipe:
        """The recipe of a BatchNorm with stored statistics."""
        return cls(_norm_step(norm))

    @property
    def leading(self) -> Source:
        """The tensor whose dtype has to be the input's."""
        return self.norm.mean

    def folded_sources(self) -> list[Source | None]:
        """All of them, in the order that ``fold`` takes their tensors."""
        return self.norm.sources()

    def checked(self, mean: Tensor | None) -> Tensor:
        """The leading tensor.

        Raises:
            Unusable: it has a dtype that the kernels do not take.
        """
        if mean is None:
            raise Restructured("a BatchNorm's statistics are gone")
        if mean.dtype not in DTYPES:
            raise Unusable(f"there is no kernel for {mean.dtype} BatchNorms")
        return mean

    def fold(self, mean: Tensor, tensors: Sequence[Tensor | None]) -> Fold:
        """Mean, scale and bias.

        Raises:
            Unusable: a tensor has a dtype, device or shape that the kernels do not take.
        """
        *_, beta = tensors
        scale, _ = self.norm.factors(tensors, mean)
        bias = torch.zeros_like(scale) if beta is None else beta.detach()
        # Copies: the parameters may change before the next call looks at them.
        values = (t.detach().to(torch.float32, copy=True) for t in (mean, scale, bias))
        return Fold(dict(zip(self.names, values, strict=True)))


def _norm_step(norm: Norm) -> NormStep:
    return NormStep(norm.mean, norm.var, norm.weight, norm.bias, norm.eps)


def _step(reading: Norm | Affine) -> Step:
    if isinstance(reading, Norm):
        return _norm_step(reading)
    return AffineStep(reading.scale, reading.shift)


def check_vector(vector: Tensor | None, weight: Tensor) -> None:
    """Raises Unusable unless the vector has a value for each of the weight's output channels."""
    if vector is None:
        return
    check_same_device(vector, weight)
    if vector.shape != weight.shape[:1]:
        raise Unusable(f"a vector for {len(weight)} channels has shape {list(vector.shape)}")


def check_device(tensor: Tensor) -> None:
    """Raises Unusable unless there are kernels for the tensor's device."""
    if tensor.device.type not in DEVICES:
        raise Unusable(f"there is no kernel for device {tensor.device.type!r}")


def check_same_device(tensor: Tensor, other: Tensor) -> None:
    """Raises Unusable unless both are on one device."""
    if tensor.device != other.device:
        raise Unusable(f"tensors are on different devices, {tensor.device} and {other.device}")
