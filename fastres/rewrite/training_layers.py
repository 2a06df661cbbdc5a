"""What a graph rewritten for training calls: layers that read their parameters at every call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._numerics import get_numerics
from ..batch_norm import ChannelAffine
from ..fx.norms import BatchNorm
from ..fx.pools import MaxPoolWindow
from ..fx.readings import Conv
from ..fx.sources import PLAIN_TYPES
from ..reference.inference import compute_dtype
from ..weights.recipes import DTYPES, Restructured, Unusable, check_device, check_same_device
from .handed import Fork
from .training_functions import BlockEnd, Convolution, MaxPool, Statistics

_NO_AFFINE = (None, None, None)


class Carried(NamedTuple):
    """A BatchNorm's output that nobody has computed: its input, and the affine to apply."""

    y: Tensor
    affine: ChannelAffine
    source: Any = None
    """The node of the graph of autograd that made y, if that is a convolution's."""


@dataclass(frozen=True)
class ConvLayer:
    """A convolution, the activation before it, and the BatchNorm after it.

    ``in_act`` is applied to an input that is ``Carried``, after its affine.
    """

    conv: Conv
    norm: BatchNorm | None
    in_act: tuple[str, float]
    rebuild: bool = False
    """Whether the output is computed again in backward."""

    def run(
        self,
        root: nn.Module,
        x: Tensor | Carried,
        adds: Fork | None = None,
        gives: Fork | None = None,
    ) -> Tensor | Carried:
        """Calls the layer.

        Args:
            root: what attributes without a module belong to.
            x: [N, C, H, W].
            adds: whose gradient to add to that of x, where this is its first convolution.
            gives: what to hand x's gradient to, where this is a shortcut's convolution.

        Returns:
            The output; carried, if there is a BatchNorm.

        Raises:
            ValueError: one value per channel, as PyTorch says it.
        """
        conv = self.conv
        weight = conv.weight.read(root, ())
        bias = None if conv.bias is None else conv.bias.read(root, ())
        given = x
        x, affine, source = x if isinstance(x, Carried) else (_cast(x), _NO_AFFINE, None)
        if x is not given:  # gradients of different tensors
            adds = gives = None
        algorithm = "winograd" if conv.suits_winograd and get_numerics() == "fast" else "direct"
        geometry = (conv.stride, conv.padding, conv.dilation, conv.groups, algorithm)
        y, mean, m2 = Convolution.apply(
            *(x, *affine, weight, self.in_act, geometry),
            *(self.norm is not None, self.rebuild, source, adds, gives),
        )
        if adds is not None:
            adds.is_open = True
        if self.norm is not None:
            affine = self.norm.call(root).affine(y.size(), mean, m2, bias)
            return Carried(y, affine, y.grad_fn)
        return y if bias is None else y + bias.to(y.dtype)[:, None, None]

    def check(self, root: nn.Module) -> Tensor:
        """The weight.

        Raises:
            Restructured: a parameter is gone or has another shape.
            Unusable: the kernels do not take a parameter.
        """
        weight = self.conv.weight.read(root, ())
        if weight is None or tuple(weight.shape) != self.conv.weight_shape:
            raise Restructured("a convolution's weight is gone or has another shape")
        if weight.dtype not in DTYPES:
            raise Unusable(f"there is no kernel for {weight.dtype} weights")
        vectors = [] if self.norm is None else _checked_tensors(self.norm, root)
        if self.conv.bias is not None:
            vectors.append(self.conv.bias.read(root, ()))
        check_device(weight)
        for tensor in (weight, *vectors):
            if tensor is None:
                continue
            if type(tensor) not in PLAIN_TYPES:
                raise Unusable("a parameter is of a type of its own")
            check_same_device(tensor, weight)
            if tensor is not weight and tensor.shape != weight.shape[:1]:
                raise Unusable(f"a vector of {len(weight)} channels has shape {[*tensor.shape]}")
        return weight


@dataclass(frozen=True)
class NormLayer:
    """A BatchNorm that follows no convolution, as in networks with pre-activation."""

    norm: BatchNorm

    def run(self, root: nn.Module, x: Tensor) -> Carried:
        """Calls the layer.

        Args:
            root: what attributes without a module belong to.
            x: [N, C, H, W].

        Raises:
            ValueError: one value per channel, as PyTorch says it.
        """
        call = self.norm.call(root)
        if call.training:
            mean, m2 = Statistics.apply(x)
        else:
            mean = m2 = x.new_zeros(x.shape[1], dtype=compute_dtype(x))
        return Carried(x, call.affine(x.size(), mean, m2))

    def check(self, root: nn.Module) -> None:
        """Raises Unusable where the kernels do not take a parameter."""
        for tensor in _checked_tensors(self.norm, root):
            if tensor is not None:
                if type(tensor) not in PLAIN_TYPES:
                    raise Unusable("a parameter is of a type of its own")
                check_device(tensor)


@dataclass(frozen=True)
class EndLayer:
    """A BatchNorm's affine, what is added to it, and the activation, in one pass."""

    act: tuple[str, float]

    def run(
        self, main: Carried, shortcut: Tensor | Carried | None, gives: Fork | None = None
    ) -> Tensor:
        """Calls the layer; both [N, C, H, W], of one dtype.

        Args:
            main: a convolution's output.
            shortcut: another one's, or a value.
            gives: what to hand the gradient of a shortcut to that is a value.
        """
        residual, res, source = (
            shortcut if isinstance(shortcut, Carried) else (shortcut, _NO_AFFINE, None)
        )
        sources = main.source, source
        out: Tensor = BlockEnd.apply(self.act, sources, gives, main.y, *main.affine, residual, *res)
        return out


@dataclass(frozen=True)
class PoolLayer:
    """A max-pooling that keeps, of the usual windows, a byte for each value, and not its input."""

    window: MaxPoolWindow

    def run(self, x: Tensor) -> Tensor:
        """Calls the layer: [N, C, H, W], channels_last."""
        out: Tensor = MaxPool.apply(x, self.window)
        return out


@dataclass(frozen=True)
class ForkLayer:
    """Where a block's shortcut starts."""

    def run(self) -> Fork:
        """What the block's first convolution and its shortcut share in this call."""
        return Fork()


Layer = ConvLayer | NormLayer | EndLayer | PoolLayer | ForkLayer


def _checked_tensors(norm: BatchNorm, root: nn.Module) -> list[Tensor | None]:
    """A BatchNorm's ``tensors``.

    Raises:
        Unusable: PyTorch refuses to run it in training mode, or any.
    """
    tensors = norm.tensors(root)
    if (tensors[0] is None) != (tensors[1] is None):
        raise Unusable("a BatchNorm has one of its two running statistics")
    if norm.eps <= 0:
        raise Unusable(f"a BatchNorm's eps is {norm.eps}")
    return tensors


def _cast(x: Tensor) -> Tensor:
    """What autocast makes of a convolution's input."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(device))
    return x
