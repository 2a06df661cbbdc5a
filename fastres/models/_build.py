"""What constructors have in common: initial values, weights from a file, and their end."""

import os
from typing import TypeVar

from torch import nn

from ..accelerate import accelerate
from ._weights import load_file

__all__ = ["Checkpoint", "finish", "he_initialise"]

#: A file that ``torch.save`` wrote: a state_dict, or a checkpoint that holds one.
Checkpoint = str | os.PathLike[str]

_Network = TypeVar("_Network", bound=nn.Module)


def he_initialise(model: nn.Module) -> None:
    """He initialisation (https://arxiv.org/abs/1502.01852) of convolutions, 1 and 0 of norms.

    The normal distribution's variance is 2 / (output channels * kernel area).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm) and module.affine:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def finish(model: _Network, weights: Checkpoint | None) -> _Network:
    """Loads the weights, if there are any, and accelerates the network in place.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it holds no state_dict.
        RuntimeError: it holds another network's.
    """
    if weights is not None:
        model.load_state_dict(load_file(weights))
    accelerate(model)
    return model
