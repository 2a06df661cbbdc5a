"""affine_add_act and its gradients in Triton: shortcuts, activations, strides, sums."""

from __future__ import annotations

import pytest
import torch
from affine_case import SHAPES, SHORTCUTS, check, check_unscaled, fused, gradients, make_inputs
from conv_case import ACTIVATIONS, DTYPES, LAYOUTS

EVERY_SHORTCUT = pytest.mark.parametrize("shortcut", SHORTCUTS)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@EVERY_SHORTCUT
def test_odd_shapes(assert_accurate, shape, shortcut):
    check(assert_accurate, make_inputs(shape, shortcut))


@pytest.mark.parametrize("act", ACTIVATIONS)
@EVERY_SHORTCUT
def test_activations(assert_accurate, act, shortcut):
    for dtype in DTYPES:
        check(assert_accurate, make_inputs(shortcut=shortcut, dtype=dtype), act)


@EVERY_SHORTCUT
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_gradient_for_both_sides(assert_accurate, shortcut, dtype):
    for shape in SHAPES:
        check_unscaled(assert_accurate, make_inputs(shape, shortcut, dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(assert_accurate, layout):
    check(assert_accurate, make_inputs(layout=layout), "silu", layout)


@EVERY_SHORTCUT
def test_several_tiles_each_way_and_a_mean_far_larger_than_the_deviation(assert_accurate, shortcut):
    check(assert_accurate, make_inputs((2, 130, 13, 11), shortcut, mean=1e3))


@EVERY_SHORTCUT
def test_empty_batch(shortcut):
    inputs = make_inputs(shortcut=shortcut)
    empty = inputs._replace(y=inputs.y[:0])
    if inputs.residual is not None:
        empty = empty._replace(residual=inputs.residual[:0])
    assert fused(empty).shape == (0, 17, 5, 7)
    for grad, tensor in zip(
        gradients(fused, empty, "relu", torch.zeros(0, 17, 5, 7)), empty.present(), strict=True
    ):
        assert grad.shape == tensor.shape
        assert grad.count_nonzero() == 0


@EVERY_SHORTCUT
def test_same_bits_again(shortcut):
    inputs = make_inputs((3, 33, 13, 11), shortcut)
    grad = torch.randn(inputs.y.shape)
    first, second = (gradients(fused, inputs, "relu", grad) for _ in range(2))
    assert all(map(torch.equal, first, second))


@EVERY_SHORTCUT
def test_fake_kernels_tell_what_the_real_ones_return(shortcut):
    inputs = make_inputs(shortcut=shortcut)
    backward = torch.ops.fastres.affine_add_act_backward.default
    grad = torch.randn_like(inputs.y)
    tests = ("test_schema", "test_faketensor")
    for more in ((), (True,)):
        torch.library.opcheck(backward, (grad, *inputs, "relu", 0.01, *more), test_utils=tests)


def test_a_mix_of_devices_is_an_error_that_names_the_argument():
    from fastres.triton import operator

    inputs = make_inputs()
    grad = torch.randn_like(inputs.y)
    run = operator("affine_add_act_backward")
    for name in ("mean", "residual", "res_bias"):
        changed = inputs._replace(**{name: getattr(inputs, name).to("meta")})
        with pytest.raises(ValueError, match=f"{name} must be on the same device as x, got meta"):
            run(grad, *changed, "relu", 0.0)
    with pytest.raises(ValueError, match="grad must be on the same device as x, got meta"):
        run(grad.to("meta"), *inputs, "relu", 0.0)
