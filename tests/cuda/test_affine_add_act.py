"""affine_add_act in CUDA and its gradients: shortcuts, dtypes, sizes, activations."""

from __future__ import annotations

import pytest
import torch
from affine_case import SHORTCUTS, check, check_unscaled, make_inputs
from conv_case import ACTIVATIONS, DTYPES

from fastres import ops

# Channels that are whole chunks and that are not, more of them than a block has threads for.
SHAPES = ((2, 17, 5, 7), (1, 1, 1, 1), (3, 64, 13, 9), (1, 1032, 3, 2), (2, 8, 31, 47))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_eager(assert_accurate, shape, shortcut, dtype):
    check(assert_accurate, make_inputs(shape, shortcut, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_gradient_for_both_sides(assert_accurate, shape, shortcut, dtype):
    check_unscaled(assert_accurate, make_inputs(shape, shortcut, dtype))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(assert_accurate, act):
    check(assert_accurate, make_inputs((2, 24, 5, 7)), act)


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_values_far_from_zero(assert_accurate, shortcut):
    check(assert_accurate, make_inputs((2, 24, 5, 7), shortcut, mean=1000.0))


def test_an_empty_batch():
    inputs = make_inputs((0, 8, 3, 3))
    leaves = inputs.map(lambda t: t.requires_grad_())
    out = ops.affine_add_act(*leaves)
    gradients = torch.autograd.grad(out.sum(), leaves.present())
    assert not any(gradient.any() for gradient in gradients)
