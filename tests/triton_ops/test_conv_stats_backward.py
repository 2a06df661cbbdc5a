"""Gradients of conv_stats in Triton: paths, what is wanted alone, strides, edges, splits."""

from __future__ import annotations

import pytest
import torch
from conv_case import ACTIVATIONS, DTYPES, LAYOUTS, same
from training_case import (
    CASES,
    KINDS,
    Inputs,
    check_gradients,
    check_gradients_through_a_block_end,
    check_shared_gradients,
    eager,
    fused,
    given_gradients,
    gradients,
    make_inputs,
)

# Each way of groups, taps and phases once: the interpreter takes seconds for each case.
NAMES = (
    "1x1/2", "3x3", "3x3/2", "7x7/2 stem, 17 channels", "3x3 groups of 2, /2", "3x3 groups of 8",
    "3x3 groups of 32, /2", "groups of 3 to 5", "groups of 1 to 3", "3x3/(2, 3)", "2x2/2",
    "asymmetric padding, groups of 4", "padding beyond the kernel", "3x3 dilated, /2",
    "3x3 dilated by 3, /2", "one pixel", "1x1/3, beyond the last tap",
)  # fmt: skip
EVERY_CASE = pytest.mark.parametrize("case", [CASES[name] for name in NAMES], ids=NAMES)
EVERY_KIND = pytest.mark.parametrize("case", [CASES[name] for name in KINDS], ids=KINDS)


@EVERY_CASE
def test_paths_match_eager(assert_accurate, case):
    check_gradients(assert_accurate, case, make_inputs(case))


@EVERY_CASE
def test_a_scale_and_another_gradient_of_the_input(assert_accurate, case):
    for dtype, affine in ((torch.float16, True), (torch.float32, False)):
        inputs = make_inputs(case, dtype, affine=affine)
        check_shared_gradients(assert_accurate, case, inputs, "relu" if affine else "none")


@EVERY_KIND
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_through_the_end_of_a_block(assert_accurate, case, dtype):
    check_gradients_through_a_block_end(assert_accurate, case, make_inputs(case, dtype))


@EVERY_KIND
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_reduced_dtypes(assert_accurate, case, dtype):
    check_gradients(assert_accurate, case, make_inputs(case, dtype))


@pytest.mark.parametrize("size", [(1, 1), (5, 2)], ids=str)
def test_odd_image_sizes(assert_accurate, size):
    for name in KINDS:
        case = CASES[name]._replace(h=size[0], w=size[1], n=1)
        check_gradients(assert_accurate, case, make_inputs(case))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(assert_accurate, layout):
    case = CASES["3x3 groups of 4"]
    inputs = make_inputs(case, layout=layout)
    inputs = inputs._replace(weight=inputs.weight.to(memory_format=torch.channels_last))
    check_gradients(assert_accurate, case, inputs, given=given_gradients(case, inputs, layout))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations_of_the_input(assert_accurate, act):
    for affine in (True, False):
        check_gradients(
            assert_accurate, CASES["3x3/2"], make_inputs(CASES["3x3/2"], affine=affine), act
        )


@pytest.mark.parametrize("name", ["1x1", "4x4", "groups of 6"])
def test_a_mean_far_larger_than_the_deviation(assert_accurate, name):
    case = CASES[name]._replace(h=29, w=23, padding=(0, 0, 0, 0))
    check_gradients(assert_accurate, case, make_inputs(case, mean=1e3), "none")


def test_a_weight_gradient_of_several_splits(assert_accurate):
    for case in (same(5, 17, 1, h=33, w=32), same(8, 8, groups=2, h=33, w=32)):  # two
        check_gradients(assert_accurate, case, make_inputs(case))


@EVERY_KIND
def test_only_what_is_wanted(case):
    case = case._replace(h=5, w=4, n=1)
    inputs = make_inputs(case)
    given = given_gradients(case, inputs)
    expected = gradients(fused, case, inputs, "relu", given)
    for i, whole in enumerate(expected):
        x, weight, *affine = tensors = [t.clone() for t in inputs.tensors()]
        tensors[i].requires_grad_()
        out = fused(case, Inputs(x, weight, tuple(affine)), "relu")
        (alone,) = torch.autograd.grad(out, tensors[i], given)
        assert torch.equal(alone, whole)


@pytest.mark.parametrize("given", [(0,), (1,), (2,)], ids=["y", "mean", "m2"])
def test_gradients_of_one_output(given):
    case = CASES["3x3"]
    inputs = make_inputs(case)
    grads = given_gradients(case, inputs)
    zeros = tuple(g if i in given else torch.zeros_like(g) for i, g in enumerate(grads))
    leaves = inputs.leaves()
    outputs = fused(case, leaves, "relu")
    found = torch.autograd.grad([outputs[i] for i in given], leaves.tensors(), [grads[given[0]]])
    for ours, true in zip(
        found, gradients(eager, case, inputs.double(), "relu", zeros), strict=True
    ):
        torch.testing.assert_close(ours.double(), true, rtol=1e-4, atol=1e-4)


@EVERY_KIND
def test_empty_batch(case):
    inputs = make_inputs(case)
    leaves = inputs._replace(x=inputs.x[:0]).leaves()
    outputs = fused(case, leaves, "relu")
    found = torch.autograd.grad(outputs, leaves.tensors(), [torch.ones_like(o) for o in outputs])
    for grad, leaf in zip(found, leaves.tensors(), strict=True):
        assert grad.shape == leaf.shape
        assert grad.count_nonzero() == 0


def test_nan_stays_in_its_group():
    case = same(8, 8, 3, groups=2)
    inputs = make_inputs(case)
    grad_y, grad_mean, grad_m2 = given_gradients(case, inputs)
    grad_y[1, 1, 3, 3] = float("nan")
    for grad in gradients(fused, case, inputs, "none", (grad_y, grad_mean, grad_m2)):
        channels = grad.transpose(0, 1) if grad.dim() == 4 and grad.shape[1] == 8 else grad
        assert channels[:4].isnan().any()
        assert channels[4:].isfinite().all()


def test_a_mix_of_devices_is_an_error_that_names_the_argument():
    from fastres.triton import operator

    x, weight = torch.randn(1, 4, 3, 3), torch.randn(5, 4, 1, 1)
    y, mean = torch.randn(1, 5, 3, 3), torch.zeros(5)
    for name in ("grad_y", "weight", "y", "mean"):
        given = {"grad_y": y, "weight": weight, "y": y, "mean": mean}
        given[name] = given[name].to("meta")
        with pytest.raises(ValueError, match=f"{name} must be on the same device as x, got meta"):
            operator("conv_stats_backward")(
                given["grad_y"], None, None, x, None, None, None, "none", 0.0, given["weight"],
                given["y"], given["mean"], (1, 1), (0,) * 4, (1, 1), 1, True, True, True,
            )  # fmt: skip
