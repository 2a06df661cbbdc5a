"""What a node of a graph may be, as far as fusing is concerned."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from .expressions import Factor
from .sources import Source


@dataclass(frozen=True)
class Conv:
    """A 2-D convolution with zero padding of ``x`` by a weight that is no result of the graph."""

    x: fx.Node
    weight: Source
    bias: Source | None
    weight_shape: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def suits_winograd(self) -> bool:
        """Whether Winograd's F(2x2, 3x3) computes it, and wins where there are many pixels.

        It wins wherever there are a few vectors of channels to amortise its transforms: 1.3 to 2
        times on every dense 3x3 of ResNet, from 56x56x64 to 7x7x512.
        """
        out_channels, in_channels, *kernel = self.weight_shape
        dense = self.groups == 1 and kernel == [3, 3]
        unit_step = self.stride == (1, 1) and self.dilation == (1, 1)
        return dense and unit_step and min(out_channels, in_channels) >= 16


@dataclass(frozen=True)
class Pad:
    """``x`` with zeros around it: (top, bottom, left, right), none of them negative."""

    x: fx.Node
    padding: tuple[int, int, int, int]


@dataclass(frozen=True)
class Norm:
    """BatchNorm of ``x`` with stored statistics: an affine per channel."""

    x: fx.Node
    mean: Source
    var: Source
    weight: Source | None
    bias: Source | None
    eps: float
    checks_rank: bool
    """Whether it refuses anything but 4 dimensions."""


@dataclass(frozen=True)
class Affine:
    """``x * scale + shift`` by numbers or by what is computed from parameters alone."""

    x: fx.Node
    scale: Factor
    shift: Factor
    channels: int
    """How many channels x has, 1 if it may have any number."""


@dataclass(frozen=True)
class Act:
    """An activation that the kernels know."""

    x: fx.Node
    name: str
    slope: float
    inplace: bool


@dataclass(frozen=True)
class Add:
    """``left + right``, written to ``left`` if in place."""

    left: fx.Node
    right: fx.Node
    inplace: bool


@dataclass(frozen=True)
class Same:
    """Hands ``x`` itself on: ``nn.Identity``, dropout in eval mode."""

    x: fx.Node


@dataclass(frozen=True)
class Unfit:
    """A convolution or BatchNorm that is none of the above, and why."""

    reason: str
    is_norm: bool = False


Reading = Conv | Pad | Norm | Affine | Act | Add | Same | Unfit
