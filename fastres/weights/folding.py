"""What the vectors of many convolutions come to, in few operators.

A BatchNorm's fold is a dozen operators on a few hundred values: fifty of them, one after the other,
are a thousand launches on a GPU, more than the network's own. Those that are alike are folded as
one long BatchNorm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .recipes import Fold, NormRecipe, NormStep, Recipe, check_vector, norm_factors

Vectors = Sequence[Tensor | None]


def fold_all(
    recipes: Sequence[Recipe | NormRecipe], weights: Sequence[Tensor], vectors: Sequence[Vectors]
) -> list[Fold]:
    """The fold of each recipe.

    Args:
        recipes: what to fold.
        weights: the leading tensor of each, a ``checked`` one, all on one device.
        vectors: the tensors of each, as ``fold`` takes them.

    Raises:
        Unusable: a tensor has a dtype, device or shape that the kernels do not take.
    """
    alike: dict[Any, list[int]] = {}
    for i, (recipe, weight, given) in enumerate(zip(recipes, weights, vectors, strict=True)):
        alike.setdefault(_kind(recipe, weight, given) or i, []).append(i)
    folds: dict[int, Fold] = {}
    for kind, members in alike.items():
        if len(members) == 1:
            i = members[0]
            folds[i] = recipes[i].fold(weights[i], vectors[i])
        else:
            together = _fold_together(kind[0], [vectors[i] for i in members])
            folds.update(zip(members, together, strict=True))
    return [folds[i] for i in range(len(recipes))]


def _kind(recipe: Recipe | NormRecipe, weight: Tensor, vectors: Vectors) -> Any:
    """The same for convolutions, each with one BatchNorm, that can be folded together."""
    if not isinstance(recipe, Recipe) or len(recipe.steps) != 1:
        return None
    (step,) = recipe.steps
    if not isinstance(step, NormStep):
        return None
    for vector in vectors:
        check_vector(vector, weight)
    return step.eps, *(vector is None for vector in vectors)


def _fold_together(eps: float, vectors: Sequence[Vectors]) -> Iterator[Fold]:
    bias, *norm = (
        None if column[0] is None else torch.cat([v.detach() for v in column if v is not None])
        for column in zip(*vectors, strict=True)
    )
    scale, shift = norm_factors(norm, eps)
    if bias is not None:
        shift = bias.double() * scale + shift
    sizes = [len(mean) for _, mean, *_ in vectors if mean is not None]
    parts = zip(scale.float().split(sizes), shift.float().split(sizes), strict=True)
    return (Fold({"shift": shift}, scale) for scale, shift in parts)
