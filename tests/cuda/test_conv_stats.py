"""conv_stats in CUDA and its gradients: paths, dtypes, statistics far from zero, what is wanted."""

from __future__ import annotations

import pytest
import torch
from conv_case import DTYPES, SLOPE, same
from training_case import (
    CASES,
    check_gradients_through_a_block_end,
    check_shared_gradients,
    eager,
    fused,
    gradient_magnitudes,
    gradients,
    magnitudes,
    make_inputs,
)

KINDS = ("3x3 wide", "1x1/2", "3x3 groups of 4, /2", "3x3 groups of 8", "3x3 groups of 16, /2",
         "3x3 groups of 32", "groups of 24", "3x3 dilated, /2")  # fmt: skip
EVERY_KIND = pytest.mark.parametrize("case", [CASES[name] for name in KINDS], ids=KINDS)


def shortened(case):
    """The layer with a few whole tiles and one that is cut, of channels and of outputs.

    Further ones are the same instructions again, of which the emulator takes long for each. The
    inference operator goes the whole way.
    """
    channels = case.c // case.groups
    if channels < 512:
        return case
    outputs = case.k // case.groups
    return case._replace(
        c=case.groups * (64 + channels % 64),
        k=case.groups * min(outputs, 64 + outputs % 64),
        n=1,
    )


def check(assert_accurate, case, inputs, act="relu"):
    found, true = fused(case, inputs, act), eager(case, inputs.double(), act)
    theirs, terms = eager(case, inputs, act), magnitudes(case, inputs)
    for ours, their, exactly, term in zip(found, theirs, true, terms, strict=True):
        assert_accurate(ours, their, exactly, magnitude=term.abs)
    y, mean, m2 = theirs
    pixels = y.numel() // case.k
    given = torch.randn(y.shape).to(y.dtype), torch.randn_like(mean), torch.randn_like(m2) / pixels
    found = gradients(fused, case, inputs, act, given)
    theirs = gradients(eager, case, inputs, act, given)
    true = gradients(eager, case, inputs.double(), act, given)
    terms = gradient_magnitudes(case, inputs, given)
    for ours, their, exactly, term in zip(found, theirs, true, terms, strict=True):
        assert_accurate(ours, their, exactly, magnitude=term.abs)


@pytest.mark.parametrize("case", map(shortened, CASES.values()), ids=CASES.keys())
def test_paths_match_eager(assert_accurate, case):
    check(assert_accurate, case, make_inputs(case))


@EVERY_KIND
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_scale_and_another_gradient_of_the_input(assert_accurate, case, dtype):
    for affine in (True, False):
        inputs = make_inputs(case, dtype, affine=affine)
        check_shared_gradients(assert_accurate, case, inputs, "relu" if affine else "none")


@EVERY_KIND
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_through_the_end_of_a_block(assert_accurate, case, dtype):
    check_gradients_through_a_block_end(assert_accurate, case, make_inputs(case, dtype))


@EVERY_KIND
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("affine", [True, False], ids=["prologue", "plain"])
def test_reduced_dtypes(assert_accurate, case, dtype, affine):
    inputs = make_inputs(case, dtype, affine=affine)
    check(assert_accurate, case, inputs, "relu" if affine else "none")


@pytest.mark.parametrize("act", ["relu6", "silu", "leaky_relu"])
def test_activations(assert_accurate, act):
    for name in ("3x3 wide", "3x3 groups of 8"):
        check(assert_accurate, CASES[name], make_inputs(CASES[name]), act)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 2)], ids=str)
def test_odd_image_sizes(assert_accurate, size):
    for name in ("3x3 wide", "3x3 groups of 4, /2", "3x3 groups of 32"):
        case = CASES[name]._replace(h=size[0], w=size[1])
        check(assert_accurate, case, make_inputs(case, torch.bfloat16))


@pytest.mark.parametrize("name", ["3x3 wide", "4x4", "3x3 groups of 8"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("affine", [False, True], ids=["of y", "of x"])
def test_a_mean_far_larger_than_the_deviation(assert_accurate, name, dtype, affine):
    # Unpadded: zeros at the border would be the variance.
    case = CASES[name]._replace(padding=(0, 0, 0, 0))
    # Beside a larger mean y's 16 bits would hold nothing of its deviation.
    mean = 1e3 if dtype == torch.float32 else 50.0
    check(assert_accurate, case, make_inputs(case, dtype, mean=mean, affine=affine), "none")


@pytest.mark.parametrize("name", ["3x3 wide", "3x3 groups of 4, /2"])
def test_statistics_of_values_far_from_zero(name):
    case = CASES[name]
    inputs = make_inputs(case, affine=False)
    # A bias through the weights: every output is about 1000, and its deviation about 1.
    inputs.x[:] = 1000 + inputs.x
    inputs = inputs._replace(weight=inputs.weight / inputs.weight.sum((1, 2, 3), keepdim=True))
    inside = case._replace(padding=(0, 0, 0, 0))
    y, mean, m2 = fused(inside, inputs)
    true_y = y.double()
    true_mean = true_y.mean((0, 2, 3))
    torch.testing.assert_close(mean.double(), true_mean, rtol=1e-6, atol=0)
    true_m2 = (true_y - true_mean[:, None, None]).square().sum((0, 2, 3))
    # A tile's mean is rounded to float32, half an ulp of 1000, and the deviations are about 1.
    deviation = (true_m2 / (y.numel() // case.k)).sqrt().min().item()
    rtol = 4 * torch.finfo(torch.float32).eps * 1000 / deviation
    torch.testing.assert_close(m2.double(), true_m2, rtol=rtol, atol=0)


@pytest.mark.parametrize("name", ["3x3 wide", "3x3 groups of 8", "groups of 24"])
def test_only_what_is_wanted(name):
    case = CASES[name]
    inputs = make_inputs(case, torch.float16)
    y, mean, _ = fused(case, inputs, "relu")
    geometry = case.stride, case.padding, case.dilation, case.groups
    arguments = (
        torch.randn(y.shape).to(y.dtype), None, torch.randn(case.k) / y.numel(), inputs.x,
        *inputs.affine, "relu", SLOPE, inputs.weight, y, mean, *geometry,
    )  # fmt: skip
    backward = torch.ops.fastres.conv_stats_backward
    everything = backward(*arguments, True, True, True)
    for wanted in ((True, False, False), (False, True, False), (False, False, True)):
        some = backward(*arguments, *wanted)
        for have, full, want in zip(
            some, everything, (wanted[0], *(wanted[1],) * 3, wanted[2]), strict=True
        ):
            assert torch.equal(have, full) if want else have.shape == (0,)


def test_is_deterministic():
    case = CASES["3x3 groups of 4, /2"]
    inputs = make_inputs(case, torch.bfloat16)
    first, second = fused(case, inputs, "relu"), fused(case, inputs, "relu")
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("name", ["3x3 wide", "3x3 groups of 8"])
def test_an_empty_batch(name):
    case = CASES[name]._replace(n=0)
    inputs = make_inputs(case)
    y, mean, m2 = fused(case, inputs, "relu")
    assert y.shape[0] == 0
    assert not mean.any()
    assert not m2.any()
    found = torch.ops.fastres.conv_stats_backward(
        y, None, None, inputs.x, *inputs.affine, "relu", 0.0, inputs.weight, y, mean, case.stride,
        case.padding, case.dilation, case.groups, True, True, True,
    )  # fmt: skip
    assert not any(gradient.any() for gradient in found)


def test_many_tiles_are_merged_and_summed(assert_accurate):
    # More tiles than a reduction has threads, more splits of the weight gradient than one.
    for case in (same(8, 72, 1, h=67, w=71), same(64, 64, groups=16, h=45, w=51, n=1)):
        check(assert_accurate, case, make_inputs(case, torch.float16, mean=10.0))
