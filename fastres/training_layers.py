"""What a graph rewritten for training calls: layers that read their parameters at every call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .batch_norm import ChannelAffine
from .fx.norms import BatchNorm
from .fx.readings import Conv
from .recipes import DTYPES, Restructured, Unusable, check_device

_PLAIN = {Tensor, nn.Parameter, type(None)}
_OPS = torch.ops.fastres


class Carried(NamedTuple):
    """A BatchNorm's output that nobody has computed: a convolution's, and the affine to apply."""

    y: Tensor
    affine: ChannelAffine


@dataclass(frozen=True)
class ConvLayer:
    """A convolution, the activation before it, and the BatchNorm after it.

    ``in_act`` is applied to an input that is ``Carried``, after its affine.
    """

    conv: Conv
    norm: BatchNorm | None
    in_act: tuple[str, float]

    def run(self, root: nn.Module, x: Tensor | Carried) -> Tensor | Carried:
        """Calls the layer.

        Args:
            root: what attributes without a module belong to.
            x: [N, C, H, W].

        Returns:
            The output; carried, if there is a BatchNorm.

        Raises:
            ValueError: one value per channel, as PyTorch says it.
        """
        conv = self.conv
        weight = conv.weight.read(root, ())
        bias = None if conv.bias is None else conv.bias.read(root, ())
        x, affine = x if isinstance(x, Carried) else (x, (None, None, None))
        y, mean, m2 = _OPS.conv_stats(
            *(x, *affine, *self.in_act, weight),
            *(conv.stride, conv.padding, conv.dilation, conv.groups),
        )
        if self.norm is not None:
            return Carried(y, self.norm.call(root).affine(y.size(), mean, m2, bias))
        return y if bias is None else y + bias.to(y.dtype)[:, None, None]

    def check(self, root: nn.Module) -> torch.dtype:
        """The weight's dtype.

        Raises:
            Restructured: a parameter is gone or has another shape.
            Unusable: the kernels do not take a parameter.
        """
        weight = self.conv.weight.read(root, ())
        if weight is None or tuple(weight.shape) != self.conv.weight_shape:
            raise Restructured("a convolution's weight is gone or has another shape")
        if weight.dtype not in DTYPES:
            raise Unusable(f"there is no kernel for {weight.dtype} weights")
        vectors = [] if self.norm is None else self.norm.tensors(root)
        if self.conv.bias is not None:
            vectors.append(self.conv.bias.read(root, ()))
        for tensor in (weight, *vectors):
            if tensor is None:
                continue
            if type(tensor) not in _PLAIN:
                raise Unusable("a parameter is of a type of its own")
            check_device(tensor)
            if tensor is not weight and tensor.shape != weight.shape[:1]:
                raise Unusable(f"a vector of {len(weight)} channels has shape {[*tensor.shape]}")
        return weight.dtype


@dataclass(frozen=True)
class EndLayer:
    """A BatchNorm's affine, what is added to it, and the activation, in one pass."""

    act: tuple[str, float]

    def run(self, main: Carried, shortcut: Tensor | Carried | None) -> Tensor:
        """Calls the layer; both [N, C, H, W], of one dtype."""
        res: tuple[Tensor | None, ...] = (None, None, None)
        if isinstance(shortcut, Carried):
            shortcut, res = shortcut
        return _OPS.affine_add_act(main.y, *main.affine, shortcut, *res, *self.act)
