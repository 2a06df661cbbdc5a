"""conv_stats in Triton: paths, prologues, statistics, edges, groups, strides."""

from __future__ import annotations

import pytest
import torch
from conv_case import ACTIVATIONS, DTYPES, LAYOUTS, same
from training_case import CASES, KINDS, check_statistics, eager, fused, make_inputs

# Groups, strides, padding and dilation go the same way as in test_conv_bn_act.py.
NAMES = (
    "3x3 wide",
    "3x3 groups of 8",
    "groups of 3 to 5",
    "3x3/(2, 3)",
    "asymmetric padding",
    "one pixel",
)
EVERY_CASE = pytest.mark.parametrize("case", [CASES[name] for name in NAMES], ids=NAMES)
EVERY_KIND = pytest.mark.parametrize("case", [CASES[name] for name in KINDS], ids=KINDS)


@EVERY_CASE
def test_paths_match_eager(assert_accurate, case):
    check_statistics(assert_accurate, case, make_inputs(case), "relu")


@EVERY_KIND
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_with_and_without_prologue(assert_accurate, case, dtype):
    check_statistics(assert_accurate, case, make_inputs(case, dtype, "nchw"))
    check_statistics(assert_accurate, case, make_inputs(case, dtype, affine=False), "none")


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 2)], ids=str)
def test_odd_image_sizes(assert_accurate, size):
    for name in KINDS:
        case = CASES[name]._replace(h=size[0], w=size[1])
        check_statistics(assert_accurate, case, make_inputs(case))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(assert_accurate, layout):
    for name in ("1x1", "3x3 groups of 4"):
        check_statistics(assert_accurate, CASES[name], make_inputs(CASES[name], layout=layout))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations_of_the_input(assert_accurate, act):
    for affine in (True, False):
        check_statistics(
            assert_accurate, CASES["3x3"], make_inputs(CASES["3x3"], affine=affine), act
        )


def test_padding_is_of_the_activated_input():
    case = same(3, 5)
    inputs = make_inputs(case)
    mean, scale, _ = inputs.affine
    shifted = inputs._replace(affine=(mean, scale, torch.full((3,), 7.0)))
    torch.testing.assert_close(fused(case, shifted, "relu"), eager(case, shifted, "relu"))


@pytest.mark.parametrize("name", ["1x1", "4x4", "3x3 groups of 4"])
@pytest.mark.parametrize("affine", [False, True], ids=["of y", "of x"])
def test_a_mean_far_larger_than_the_deviation(assert_accurate, name, affine):
    # Unpadded: zeros at the border would be the variance.
    case = CASES[name]._replace(h=29, w=23, padding=(0, 0, 0, 0))
    check_statistics(assert_accurate, case, make_inputs(case, mean=1e3, affine=affine), "none")


def test_more_tiles_than_one_step_merges(assert_accurate):
    case = same(3, 16, 1, h=120, w=71)  # 134 tiles of 128 pixels
    check_statistics(assert_accurate, case, make_inputs(case, mean=100.0, affine=False), "none")


def test_weights_may_have_another_dtype_than_x():
    case = CASES["3x3 groups of 4"]
    inputs = make_inputs(case, torch.bfloat16)
    wide = inputs._replace(weight=inputs.weight.float())
    assert all(map(torch.equal, fused(case, inputs, "relu"), fused(case, wide, "relu")))


@EVERY_KIND
def test_empty_batch(case):
    inputs = make_inputs(case)
    y, mean, m2 = fused(case, inputs._replace(x=inputs.x[:0]), "relu")
    assert y.shape == (0, *eager(case, inputs)[0].shape[1:])
    assert mean.shape == m2.shape == (case.k,)
    assert mean.count_nonzero() == m2.count_nonzero() == 0


def test_nan_in_one_group_reaches_the_statistics_of_its_channels():
    case = same(8, 8, 3, groups=2)
    inputs = make_inputs(case)
    inputs.x[1, 1, 3, 3] = float("nan")
    for statistic in fused(case, inputs, "relu")[1:]:
        assert statistic[:4].isnan().all()
        assert statistic[4:].isfinite().all()
