"""What conv_stats computes: paths, sizes, strides, prologues, statistics, threads, errors."""

from __future__ import annotations

import pytest
import torch
from conv_case import ACTIVATIONS, DTYPES, LAYOUTS, ConvCase, same
from torch.nn import functional as F
from training_case import CASES, KINDS, check_statistics, eager, fused, make_inputs

from fastres import ops

pytestmark = pytest.mark.usefixtures("kernels")

EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
EVERY_KIND = pytest.mark.parametrize("case", [CASES[name] for name in KINDS], ids=KINDS)
SIZES = (1, 2, 5, 13)


@EVERY_CASE
@pytest.mark.parametrize("affine", [True, False], ids=["prologue", "plain"])
def test_paths_match_eager(assert_accurate, case, affine):
    for layout in ("nchw", "channels_last"):
        inputs = make_inputs(case, layout=layout, affine=affine)
        check_statistics(assert_accurate, case, inputs, "relu" if affine else "none")


@EVERY_CASE
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_reduced_dtypes(assert_accurate, case, dtype):
    for layout in ("nchw", "channels_last"):
        check_statistics(assert_accurate, case, make_inputs(case, dtype, layout))


@pytest.mark.parametrize("height", SIZES)
@pytest.mark.parametrize("width", SIZES)
def test_odd_image_sizes(assert_accurate, height, width):
    for name in KINDS:
        case = CASES[name]._replace(h=height, w=width)
        check_statistics(assert_accurate, case, make_inputs(case))


@pytest.mark.parametrize("group_channels", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("groups", [2, 5])
def test_group_widths(assert_accurate, group_channels, groups):
    channels = groups * group_channels
    for stride in (1, 2):
        case = same(channels, channels, 3, stride, groups, h=5, w=7)
        check_statistics(assert_accurate, case, make_inputs(case))


@EVERY_KIND
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(assert_accurate, case, layout):
    check_statistics(assert_accurate, case, make_inputs(case, layout=layout))


@EVERY_KIND
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations_of_the_input(assert_accurate, case, act):
    for affine in (True, False):
        check_statistics(assert_accurate, case, make_inputs(case, affine=affine), act)


def test_padding_is_of_the_activated_input():
    case = same(3, 5)
    inputs = make_inputs(case)
    mean, scale, _ = inputs.affine
    shifted = inputs._replace(affine=(mean, scale, torch.full((3,), 7.0)))
    torch.testing.assert_close(fused(case, shifted, "relu"), eager(case, shifted, "relu"))


@pytest.mark.parametrize("name", ["1x1", "4x4", "groups of 6"])
def test_a_mean_far_larger_than_the_deviation(assert_accurate, name):
    # Unpadded: zeros at the border would be the variance.
    case = CASES[name]._replace(h=29, w=23, padding=(0, 0, 0, 0))
    for affine in (False, True):  # of y, and of x
        inputs = make_inputs(case, mean=1e3, affine=affine)
        check_statistics(assert_accurate, case, inputs, "none")


def test_images_larger_than_the_cache(assert_accurate):
    for case in (same(128, 16, h=37, w=61, n=1), same(256, 256, 3, 2, 32, h=65, w=37, n=1)):
        check_statistics(assert_accurate, case, make_inputs(case))


@EVERY_KIND
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_on_any_number_of_threads(kernels, case, dtype, set_threads):
    inputs = make_inputs(case._replace(h=29, w=23, n=3), dtype)
    outputs = []
    # PyTorch's own convolutions, under the reference, choose algorithms by the thread count.
    for threads in (2, 2) if kernels == "reference" else (1, 2, 3, 2):
        set_threads(threads)
        outputs.append(fused(case, inputs, "relu"))
    for other in outputs[1:]:
        assert all(map(torch.equal, outputs[0], other))


@EVERY_KIND
def test_empty_batch(case):
    inputs = make_inputs(case)
    y, mean, m2 = fused(case, inputs._replace(x=inputs.x[:0]), "relu")
    _, k, h, w = eager(case, inputs)[0].shape
    assert y.shape == (0, k, h, w)
    assert y.stride() == (h * w * k, 1, w * k, k)
    assert mean.count_nonzero() == m2.count_nonzero() == 0
    assert mean.shape == m2.shape == (k,)


def test_inputs_are_not_changed():
    for case in CASES.values():
        inputs = make_inputs(case)
        copies = [tensor.clone() for tensor in inputs.tensors()]
        fused(case, inputs, "relu")
        assert all(map(torch.equal, inputs.tensors(), copies))


def test_nan_in_one_image_reaches_the_statistics_of_its_channels():
    case = same(8, 8, 3, groups=2)
    inputs = make_inputs(case)
    inputs.x[1, 1, 3, 3] = float("nan")
    _, mean, m2 = fused(case, inputs, "relu")
    for statistic in (mean, m2):
        assert statistic[:4].isnan().all()
        assert statistic[4:].isfinite().all()


def arguments() -> dict:
    return {
        "x": torch.randn(2, 8, 5, 7),
        "in_mean": torch.zeros(8),
        "in_scale": torch.ones(8),
        "in_bias": torch.zeros(8),
        "in_act": "relu",
        "in_act_slope": 0.01,
        "weight": torch.randn(12, 4, 3, 3),
        "stride": (1, 1),
        "padding": (1, 1, 1, 1),
        "dilation": (1, 1),
        "groups": 2,
    }


WRONG_VALUES = {
    "rank": ({"x": torch.randn(8, 5, 7)}, r"x must .*\[8, 5, 7\]"),
    "weight rank": ({"weight": torch.randn(12, 4, 3)}, r"weight must .*\[12, 4, 3\]"),
    "empty weight": ({"weight": torch.randn(12, 4, 0, 3)}, r"weight must .*\[12, 4, 0, 3\]"),
    "channels": ({"weight": torch.randn(12, 3, 3, 3)}, r"weight must have 8/2.*\[12, 3, 3, 3\]"),
    "groups": ({"groups": 0}, r"groups must be positive.*0"),
    "groups do not divide K": ({"weight": torch.randn(13, 4, 3, 3)}, r"groups.*13"),
    "stride": ({"stride": (0, 1)}, r"stride must be .*positive.*0, 1"),
    "padding": ({"padding": (0, -1, 0, 0)}, r"padding must .*negative.*-1"),
    "small x": ({"x": torch.randn(2, 8, 1, 7), "padding": (0, 1, 1, 1)}, r"x .*too small"),
    "act": ({"in_act": "gelu"}, r"act must be .*none.*leaky_relu.*gelu"),
    "mean": ({"in_mean": torch.zeros(7)}, r"in_mean must have shape \[8\].*\[7\]"),
    "scale alone": ({"in_mean": None, "in_bias": None}, r"in_mean, in_scale and in_bias must"),
    "bias dtype": ({"in_bias": torch.zeros(8).double()}, r"in_bias must be.*float32"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_wrong_values(name):
    changed, message = WRONG_VALUES[name]
    values = {**arguments(), **changed}
    with pytest.raises(ValueError, match=message):
        torch.ops.fastres.conv_stats(*values.values())


def test_wrong_types():
    values = arguments()
    for name, value in (
        ("x", values["x"].int()),
        ("weight", values["weight"].double()),
        ("in_scale", values["in_scale"].half()),
        ("in_mean", 1.0),
    ):
        with pytest.raises(TypeError, match=f"{name} must be"):
            ops.conv_stats(**{**values, name: value})


def test_autocast_casts_x_alone():
    case = same(17, 5)
    inputs = make_inputs(case)
    expected = fused(case, inputs._replace(x=inputs.x.bfloat16()), "relu")
    with torch.autocast("cpu", torch.bfloat16):
        out = fused(case, inputs, "relu")
    assert out[0].dtype == torch.bfloat16
    assert all(map(torch.equal, out, expected))


def test_statistics_of_an_unpadded_image_with_channels_between(assert_accurate):
    case = ConvCase(3, 64, (7, 7), (2, 2), h=33, w=29)
    inputs = make_inputs(case, affine=False, layout="channel_sliced")
    check_statistics(assert_accurate, case, inputs, "none")


def test_long_sums_keep_their_digits(assert_accurate):
    """2304 products a sum, which on matrix tiles come in two parts."""
    x = torch.randn(1, 256, 28, 28).relu()
    weight = torch.randn(256, 256, 3, 3) / (9 * 256) ** 0.5
    y, *_ = ops.conv_stats(x, weight, stride=2, padding=1)
    wide = [t.double() for t in (x, weight)]
    sizes = [t.abs() for t in wide]
    assert_accurate(
        y,
        F.conv2d(x, weight, None, 2, 1),
        F.conv2d(*wide, None, 2, 1),
        magnitude=lambda: F.conv2d(*sizes, None, 2, 1),
    )
