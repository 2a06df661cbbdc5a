"""affine_add_act and its gradients: shortcuts, activations, strides, threads, errors."""

from __future__ import annotations

import pytest
import torch
from affine_case import (
    SHAPES,
    SHORTCUTS,
    Inputs,
    check,
    check_unscaled,
    eager,
    fused,
    gradients,
    make_inputs,
)
from conv_case import ACTIVATIONS, DTYPES, LAYOUTS
from torch import Tensor

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_odd_shapes(assert_accurate, shape, shortcut):
    for layout in ("nchw", "channels_last"):
        check(assert_accurate, make_inputs(shape, shortcut, layout=layout))


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_activations(assert_accurate, act, shortcut, dtype):
    check(assert_accurate, make_inputs(shortcut=shortcut, dtype=dtype), act)


@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_gradient_for_both_sides(assert_accurate, shortcut, dtype):
    for shape in SHAPES:
        check_unscaled(assert_accurate, make_inputs(shape, shortcut, dtype))
    for layout in LAYOUTS:
        inputs = make_inputs(shortcut=shortcut, dtype=dtype, layout=layout)
        for act in ACTIVATIONS:
            check_unscaled(assert_accurate, inputs, act, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(assert_accurate, layout):
    for grad_layout in ("nchw", layout):
        check(assert_accurate, make_inputs(layout=layout), "silu", grad_layout)


def test_a_mean_far_larger_than_the_deviation(assert_accurate):
    check(assert_accurate, make_inputs((2, 17, 29, 23), mean=1e3))


@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_same_bits_on_any_number_of_threads(shortcut, dtype, set_threads):
    inputs = make_inputs((3, 33, 29, 23), shortcut, dtype)
    grad = torch.randn(inputs.y.shape).to(dtype)
    set_threads(1)
    first = [fused(inputs), *gradients(fused, inputs, "relu", grad)]
    for threads in (2, 3, 2):
        set_threads(threads)
        other = [fused(inputs), *gradients(fused, inputs, "relu", grad)]
        assert all(map(torch.equal, first, other))


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_empty_batch(shortcut):
    inputs = make_inputs(shortcut=shortcut)
    empty = inputs._replace(y=inputs.y[:0])
    if inputs.residual is not None:
        empty = empty._replace(residual=inputs.residual[:0])
    assert fused(empty).shape == (0, 17, 5, 7)
    found = gradients(fused, empty, "relu", torch.zeros(0, 17, 5, 7))
    for grad, tensor in zip(found, empty.present(), strict=True):
        assert grad.shape == tensor.shape
        assert grad.count_nonzero() == 0


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_float64_has_the_right_gradients(shortcut):
    leaves = make_inputs((2, 3, 3, 2), shortcut).map(lambda t: t.double().requires_grad_())
    wanted = leaves.present()

    def run(*tensors):
        return fused(Inputs(*tensors), "silu")

    assert torch.autograd.gradcheck(run, wanted)
    assert torch.autograd.gradgradcheck(run, wanted)


@pytest.mark.parametrize("act", ["relu", "silu"])
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_twice(act, shortcut):
    inputs = make_inputs(shortcut=shortcut)

    def penalty(function, inputs: Inputs) -> tuple[Tensor, ...]:
        leaves = inputs.map(lambda t: t.detach().clone().requires_grad_())
        wanted = leaves.present()
        first = torch.autograd.grad(function(leaves, act).square().sum(), wanted, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), wanted)

    true = penalty(eager, inputs.map(Tensor.double))
    for our, exact in zip(penalty(fused, inputs), true, strict=True):
        assert (our - exact).norm() <= 1e-5 * exact.norm()


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_opcheck(shortcut):
    inputs = make_inputs(shortcut=shortcut)
    leaves = inputs.map(lambda t: t.detach().clone().requires_grad_())
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    forward, backward = (
        torch.ops.fastres.affine_add_act.default,
        torch.ops.fastres.affine_add_act_backward.default,
    )
    torch.library.opcheck(forward, (*leaves, "relu", 0.01), test_utils=tests)
    grad = torch.randn_like(inputs.y)
    for more in ((), (True,)):
        torch.library.opcheck(backward, (grad, *inputs, "relu", 0.01, *more), test_utils=tests)


WRONG_VALUES = {
    "rank": ({"y": torch.randn(17, 5, 7)}, r"y must .*\[17, 5, 7\]"),
    "mean": ({"mean": torch.zeros(5)}, r"mean must have shape \[17\].*\[5\]"),
    "residual": ({"residual": torch.randn(2, 17, 5, 6)}, r"residual must .*\[2, 17, 5, 6\]"),
    "residual dtype": ({"residual": torch.randn(2, 17, 5, 7).half()}, r"residual must"),
    "part of an affine": ({"res_scale": None}, r"res_mean, res_scale and res_bias must"),
    "affine of nothing": ({"residual": None}, r"res_mean needs a residual"),
}


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_wrong_values(name):
    changed, message = WRONG_VALUES[name]
    inputs = make_inputs()._replace(**changed)
    with pytest.raises(ValueError, match=message):
        torch.ops.fastres.affine_add_act(*inputs, "relu", 0.01)
    with pytest.raises(ValueError, match=r"act must be .*none.*leaky_relu.*gelu"):
        torch.ops.fastres.affine_add_act(*make_inputs(), "gelu", 0.01)


def test_wrong_types():
    inputs = make_inputs()
    for name in ("y", "scale", "residual", "res_bias"):
        with pytest.raises(TypeError, match=f"{name} must be"):
            fused(inputs._replace(**{name: getattr(inputs, name).int()}))
