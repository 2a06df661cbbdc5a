"""One model four times, which is what ``bench`` and ``verify`` compare."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..accelerate import accelerate, restore
from ..fx.structure import eval_view
from ..rewrite.plan import Fusion, walk
from ..weights.recipes import Recipe

__all__ = ["Contenders", "channels_last"]


@dataclass(frozen=True)
class Contenders:
    """Copies with the same parameters: eager in both memory formats, accelerated, float64.

    ``algorithm`` is "winograd" if the accelerated one convolves with it anywhere, else "direct".
    """

    eager: nn.Module
    channels_last: nn.Module
    accelerated: nn.Module
    float64: nn.Module
    algorithm: str

    @classmethod
    def of(cls, model: nn.Module) -> "Contenders":
        """Copies ``model``, accelerated or not, which is left as it is."""
        plain = restore(copy.deepcopy(model))
        return cls(
            plain,
            _to_channels_last(copy.deepcopy(plain)),
            accelerate(copy.deepcopy(plain)),
            copy.deepcopy(plain).double(),
            _algorithm(plain),
        )


def channels_last(x: Tensor) -> Tensor:
    """A batch of images in channels_last; anything else as it is."""
    return x.to(memory_format=torch.channels_last) if x.dim() == 4 else x


def _algorithm(model: nn.Module) -> str:
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    fusions = (fusion for _, fusion in walk(eval_view(model)) if isinstance(fusion, Fusion))
    recipes = (recipe for fusion in fusions for recipe in fusion.result.recipes)
    algorithms = {recipe.algorithm(dtype=dtype) for recipe in recipes if isinstance(recipe, Recipe)}
    return "winograd" if "winograd" in algorithms else "direct"


def _to_channels_last(model: nn.Module) -> nn.Module:
    # Not module.to(memory_format=...), which fails on the weights of a Conv3d.
    for parameter in model.parameters():
        parameter.data = channels_last(parameter.data)
    return model
