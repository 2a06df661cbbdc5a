"""fold_all: the bits of each recipe's own fold, in one pass for those that are alike."""

from __future__ import annotations

import pytest
import torch
from nets import randomised
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastres.fx.tracing import default_pattern
from fastres.rewrite.plan import Fusion
from fastres.weights.folding import fold_all
from fastres.weights.recipes import Unusable


class Count(TorchDispatchMode):
    """How many operators run that are not mere views."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += not func.is_view
        return func(*args, **(kwargs or {}))


def layers(n: int) -> list[nn.Module]:
    return [
        layer
        for i in range(n)
        for layer in (nn.Conv2d(8, 8, 3, padding=1, bias=i % 3 == 2), nn.BatchNorm2d(8))
    ]


def inputs(model: nn.Module):
    """Recipes, weights and vectors of a model."""
    recipes = Fusion(model, default_pattern(model), autocast=False, blocks=True).result.recipes
    read = [
        [None if s is None else s.read(model, ()) for s in (r.leading, *r.folded_sources())]
        for r in recipes
    ]
    return recipes, [row[0] for row in read], [row[1:] for row in read]


@torch.no_grad()
def test_the_same_bits_as_one_by_one():
    # Alike, with a bias, of another eps, without affine, without BatchNorm, BatchNorm alone.
    model = nn.Sequential(
        *(nn.BatchNorm2d(8), nn.ReLU(), *layers(9), nn.Conv2d(8, 16, 1), nn.ReLU()),
        *(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8, eps=0.1)),
        *(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, affine=False)),
    )
    recipes, weights, vectors = inputs(randomised(model))
    folds = fold_all(recipes, weights, vectors)
    assert len(folds) == len(recipes) == 13
    for fold, recipe, weight, given in zip(folds, recipes, weights, vectors, strict=True):
        alone = recipe.fold(weight, given)
        assert fold.kept.keys() == alone.kept.keys()
        assert all(torch.equal(fold.kept[name], alone.kept[name]) for name in alone.kept)
        assert (fold.scale is None) == (alone.scale is None)
        assert fold.scale is None or torch.equal(fold.scale, alone.scale)


@torch.no_grad()
def test_many_take_as_many_operators_as_few():
    counts = []
    for n in (6, 30):
        given = inputs(nn.Sequential(*layers(n)).eval())
        with Count() as count:
            fold_all(*given)
        counts.append(count.calls)
    assert counts[0] == counts[1] < 40


@torch.no_grad()
def test_a_vector_of_another_length_is_unusable():
    recipes, weights, vectors = inputs(nn.Sequential(*layers(2)).eval())
    vectors[1][1] = torch.ones(7)
    with pytest.raises(Unusable, match=r"vector for 8 channels has shape \[7\]"):
        fold_all(recipes, weights, vectors)
