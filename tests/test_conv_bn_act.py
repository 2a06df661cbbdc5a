"""What conv_bn_act computes: paths, shapes, dtypes, strides, activations, NaN, threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conv_case import (
    ACTIVATIONS,
    BANDS,
    BFLOAT16,
    DTYPES,
    FEW,
    LAYOUTS,
    PATHS,
    ConvCase,
    Inputs,
    check_case,
    check_infinite_weight,
    eager,
    exact,
    fused,
    make_inputs,
    same,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastres import ops

pytestmark = pytest.mark.usefixtures("kernels")

SIZES = (1, 2, 5, 7, 13, 17)
CHANNELS = (1, 3, 5, 17, 33)
EVERY_PATH = pytest.mark.parametrize("case", PATHS.values(), ids=PATHS.keys())
# One of each kind of kernel, where all of them would take too long.
KINDS = (
    "1x1",
    "1x1/2",
    "3x3",
    "3x3 winograd",
    "3x3 groups of 4",
    "3x3 groups of 1, /2",
    "groups of 6",
)
# Winograd's transforms spread what is not finite over a tile.
DIRECT = {name: case for name, case in PATHS.items() if case.algorithm == "direct"}
EVERY_KIND = pytest.mark.parametrize("case", [PATHS[name] for name in KINDS], ids=KINDS)


@EVERY_PATH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_paths_match_eager(assert_accurate, case, dtype):
    for layout in ("nchw", "channels_last"):
        inputs = make_inputs(case, dtype, layout, residual_layout=layout)
        check_case(assert_accurate, case, inputs, "relu")
        check_case(assert_accurate, case, inputs._replace(residual=None))


@pytest.mark.parametrize("case", BFLOAT16.values(), ids=BFLOAT16.keys())
def test_weights_packed_as_bfloat16(assert_accurate, case):
    for layout in ("nchw", "channels_last"):
        inputs = make_inputs(case, torch.bfloat16, layout, residual_layout=layout)
        check_case(assert_accurate, case, inputs, "relu")
        check_case(assert_accurate, case, inputs._replace(residual=None), "silu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_packed_as_bfloat16_are_rounded_ones(dtype):
    """Whose products with an input of any type are those of the same weights, packed directly."""
    for case in BFLOAT16.values():
        inputs = make_inputs(case, dtype)
        rounded = inputs._replace(weight=inputs.weight.bfloat16(), scale=torch.ones(case.k))
        out = fused(case, rounded)
        torch.testing.assert_close(out, fused(case._replace(algorithm="direct"), rounded))


@pytest.mark.parametrize("case", BANDS.values(), ids=BANDS.keys())
def test_images_larger_than_the_cache(assert_accurate, case, set_threads):
    for threads in (1, 2):
        set_threads(threads)
        check_case(assert_accurate, case, make_inputs(case, torch.float32, "nchw", "nchw"))
    check_case(assert_accurate, case, make_inputs(case, torch.bfloat16))


@pytest.mark.parametrize("height", SIZES)
@pytest.mark.parametrize("width", SIZES)
def test_odd_image_sizes(assert_accurate, height, width):
    for name in KINDS:
        case = PATHS[name]._replace(h=height, w=width)
        check_case(assert_accurate, case, make_inputs(case))


@pytest.mark.parametrize("c", CHANNELS)
@pytest.mark.parametrize("k", CHANNELS)
def test_odd_channel_counts(assert_accurate, c, k):
    for kernel, stride in ((1, 1), (1, 2), (3, 1), (3, 2), (7, 2)):
        case = same(c, k, kernel, stride, h=7, w=5)
        check_case(assert_accurate, case, make_inputs(case), "relu")


@pytest.mark.parametrize("channels", [3, 64])
def test_strides_far_beyond_the_image(assert_accurate, channels):
    """Nothing counts up to them."""
    case = ConvCase(channels, 64, stride=(2**31 - 1, 2**30), padding=(1, 1, 1, 1))
    check_case(assert_accurate, case, make_inputs(case), "relu")


@pytest.mark.parametrize("groups", [2, 3, 5, 33])
@pytest.mark.parametrize("group_channels", [1, 2, 3, 4, 5, 8, 16, 17, 32])
def test_group_counts(assert_accurate, group_channels, groups):
    channels = groups * group_channels
    for stride in (1, 2):
        case = same(channels, channels, 3, stride, groups, h=5, w=7, n=1)
        check_case(assert_accurate, case, make_inputs(case), "relu")


@pytest.mark.parametrize("group_channels", [4, 8])
@pytest.mark.parametrize("kernel", [1, 2, 5])
def test_narrow_groups_of_any_kernel_and_width(assert_accurate, group_channels, kernel):
    """Tiles of every width that a register tile of these groups may have."""
    for width in range(1, 15):
        case = same(24, 24, kernel, 1, 24 // group_channels, h=3, w=width, n=1)
        check_case(assert_accurate, case, make_inputs(case, residual_layout="nchw"), "silu")
    dilated = same(24, 24, 3, 2, 24 // group_channels)._replace(dilation=(2, 1))
    check_case(assert_accurate, dilated, make_inputs(dilated), "relu")


@EVERY_KIND
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(assert_accurate, case, layout, dtype):
    for residual_layout in LAYOUTS:
        check_case(assert_accurate, case, make_inputs(case, dtype, layout, residual_layout), "relu")


@EVERY_KIND
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(assert_accurate, case, act):
    for dtype in DTYPES:
        inputs = make_inputs(case, dtype, residual_layout="channels_last")
        # Wide enough to reach both ends of relu6 and the saturated sigmoid.
        inputs = inputs._replace(scale=inputs.scale * 8)
        check_case(assert_accurate, case, inputs, act)


def test_leaky_relu_slope_of_any_sign(kernels):
    case = PATHS["1x1"]
    inputs = make_inputs(case)
    packed = ops.pack_conv_weight(inputs.weight, inputs.scale)
    before = ops.conv_bn_act(inputs.x, packed, inputs.shift, kernel_size=1)
    for slope in (-0.5, 0.0, 2.0):
        out = ops.conv_bn_act(
            inputs.x, packed, inputs.shift, kernel_size=1, act="leaky_relu", act_slope=slope
        )
        torch.testing.assert_close(out, F.leaky_relu(before, slope))


@EVERY_PATH
def test_empty_batch(case):
    inputs = make_inputs(case._replace(n=1), residual_layout="nchw")
    empty = inputs._replace(x=inputs.x[:0], residual=inputs.residual[:0])
    out = fused(case, empty, "relu")
    _, k, h, w = inputs.residual.shape
    assert out.shape == (0, k, h, w)
    assert out.stride() == (h * w * k, 1, w * k, k)


@pytest.mark.parametrize("case", DIRECT.values(), ids=DIRECT.keys())
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_not_finite_values_stay_where_eager_has_them(assert_accurate, case, value):
    for act in ("none", "relu", "relu6", "leaky_relu"):
        inputs = make_inputs(case)
        n, c, h, w = inputs.x.shape
        inputs.x[n - 1, c // 2, h // 2, w // 2] = value
        inputs.x[0, c - 1, h - 1, 0] = value
        check_case(assert_accurate, case, inputs, act)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_not_finite_bfloat16_values_stay_in_their_group(value):
    """Tiles have groups side by side, with zeros between; eager spreads some groups' values."""
    for name, case in DIRECT.items():
        for residual_layout in (None, "channels_last") if "groups" in name else (None,):
            inputs = make_inputs(case, torch.bfloat16, residual_layout=residual_layout)
            inputs.x[case.n - 1, case.c // 2, case.h // 2, case.w // 2] = value
            out, expected = fused(case, inputs, "relu").double(), exact(case, inputs, "relu")
            torch.testing.assert_close(out, expected, rtol=0.05, atol=0.1, equal_nan=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_not_finite_bfloat16_values_of_a_threads_last_rows(value, set_threads):
    """Each begins at a panel of its own, and goes to other kernels for what is not finite."""
    case = same(512, 512, groups=32, h=28, w=28, n=2)
    inputs = make_inputs(case, torch.bfloat16)
    inputs.x[1, 5, 25:, 3] = value
    expected = exact(case, inputs, "relu")
    for threads in (1, 2, 3):
        set_threads(threads)
        out = fused(case, inputs, "relu").double()
        torch.testing.assert_close(out, expected, rtol=0.05, atol=0.1, equal_nan=True)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")], ids=str)
def test_not_finite_weights(value):
    for name in ("1x1 of 72", "1x1 of 640", "1x1/2 of 72"):
        case = PATHS[name]
        inputs = make_inputs(case)
        inputs.weight[5, case.c - 1] = value
        out, expected = fused(case, inputs), eager(case, inputs)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("channel", [0, 63, 64, 159])
def test_not_finite_weights_of_a_later_panel(channel):
    check_infinite_weight(fused, channel)


def test_largest_values(assert_accurate):
    """Which a bfloat16, what matrix tiles multiply, would round to infinity."""
    for name in ("1x1 of 72", "1x1 of 640", "3x3 of 96, /2"):
        inputs = make_inputs(PATHS[name])
        inputs.x[0, 1, 2, 3] = torch.finfo(torch.float32).max
        inputs = inputs._replace(weight=inputs.weight / 1024)
        check_case(assert_accurate, PATHS[name], inputs)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_values_far_from_one(assert_accurate, scale):
    for name in ("1x1 of 72", "1x1 of 640", "3x3 of 96, /2", "3x3 winograd, even"):
        inputs = make_inputs(PATHS[name])
        inputs = inputs._replace(x=inputs.x * scale, shift=inputs.shift * scale)
        check_case(assert_accurate, PATHS[name], inputs)


@pytest.mark.parametrize("row", [0, 3, 6])
@pytest.mark.parametrize("column", [0, 4, -1])
@pytest.mark.parametrize("name", ["3x3 winograd, even", "3x3 winograd, large weights"])
def test_winograd_spreads_nan_over_a_tile_at_most(kernels, name, row, column):
    case = PATHS[name]
    inputs = make_inputs(case)
    inputs.x[1, 5, row, column] = float("nan")
    spread, expected = fused(case, inputs).isnan(), eager(case, inputs).isnan()
    assert (spread & expected).equal(expected)
    grown = F.max_pool2d(expected.float(), 3, 1, 1) > 0  # a 2x2 tile that starts one before
    assert not (spread & ~grown).any()


def test_winograd_of_large_images_with_large_weights(assert_accurate):
    """Which matrix tiles take some rows at a time, and several images not together."""
    case = same(256, 200, h=47, w=45, n=2, algorithm="winograd")
    inputs = make_inputs(case, residual_layout="channels_last")
    out = check_case(assert_accurate, case, inputs, "relu")
    alone = inputs._replace(x=inputs.x[1:], residual=inputs.residual[1:])
    assert torch.equal(fused(case, alone, "relu"), out[1:])


def test_silu_of_extremes():
    inf = float("inf")
    x = torch.tensor([float("nan"), inf, -inf, -1e4, -90.0, -20.0, 0.0, 1e4])
    packed = ops.pack_conv_weight(torch.ones(1, 1, 1, 1))
    out = ops.conv_bn_act(x.view(1, 1, 2, 4), packed, torch.zeros(1), kernel_size=1, act="silu")
    # Next to denormals: whether -90 / (1 + exp(90)) is -7e-38 or 0 is a matter of vector widths.
    torch.testing.assert_close(out.flatten(), F.silu(x), rtol=1e-6, atol=1e-37, equal_nan=True)


def test_not_finite_residual_and_shift(assert_accurate):
    case = PATHS["3x3 groups of 4"]
    inputs = make_inputs(case, residual_layout="nchw")
    inputs.residual[0, 3, 1, 2] = float("nan")
    inputs.residual[1, 5, 0, 0] = float("-inf")
    inputs.shift[7] = float("inf")
    check_case(assert_accurate, case, inputs, "relu6")


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_padding_strings(padding, dilation):
    x, weight = torch.randn(2, 5, 13, 7), torch.randn(17, 5, 4, 3) / 8
    packed = ops.pack_conv_weight(weight)
    out = ops.conv_bn_act(
        x, packed, torch.zeros(17), kernel_size=(4, 3), padding=padding, dilation=dilation
    )
    torch.testing.assert_close(out, F.conv2d(x, weight, None, 1, padding, dilation))


def test_shift_is_optional():
    inputs = make_inputs(PATHS["3x3"])
    packed = ops.pack_conv_weight(inputs.weight)
    arguments = PATHS["3x3"].arguments()
    without = ops.conv_bn_act(inputs.x, packed, **arguments)
    assert torch.equal(without, ops.conv_bn_act(inputs.x, packed, torch.zeros(17), **arguments))


@EVERY_PATH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_on_any_number_of_threads(kernels, case, dtype, set_threads):
    inputs = make_inputs(case._replace(h=29, w=23, n=1), dtype, residual_layout="nchw")
    outputs = []
    # PyTorch's own convolutions, under the reference, choose algorithms by the thread count.
    for threads in (2, 2) if kernels == "reference" else (1, 2, 3, 2):
        set_threads(threads)
        outputs.append(fused(case, inputs, "relu"))
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


def test_concurrent_calls():
    work = [(case, make_inputs(case, residual_layout="nchw")) for case in PATHS.values()]
    alone = [fused(case, inputs) for case, inputs in work]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda item: fused(*item), work * 3))
    assert all(map(torch.equal, alone * 3, together))


def test_one_channel_in_either_layout(set_threads):
    """Its strides may be either layout's; see reference.with_usual_strides()."""
    case = ConvCase(1, 1, (1, 3), (1, 2), h=6, w=4, n=3)
    inputs = make_inputs(case, layout="channels_last")
    exact = eager(case, Inputs(*(t if t is None else t.double() for t in inputs)))
    for threads in (1, 2, 3):
        set_threads(threads)
        torch.testing.assert_close(fused(case, inputs).double(), exact, rtol=1e-5, atol=1e-5)


def test_inputs_are_not_changed():
    for case in PATHS.values():
        inputs = make_inputs(case, residual_layout="channels_last")
        copies = [tensor.clone() for tensor in inputs]
        fused(case, inputs, "relu")
        assert all(map(torch.equal, inputs, copies))


@st.composite
def conv_cases(draw: st.DrawFn) -> ConvCase:
    padding = draw(st.tuples(*[st.integers(0, 4)] * 4))
    winograd = draw(st.integers(0, 3)) == 0
    if winograd:
        groups, kernel, stride, dilation = 1, (3, 3), (1, 1), (1, 1)
    else:
        groups = draw(st.sampled_from([1, 1, 2, 3, 5, 8, 17]))
        kernel, stride, dilation = (
            draw(st.tuples(*[st.integers(1, top)] * 2)) for top in (5, 3, 3)
        )
    group_in = draw(st.integers(1, 20))
    group_out = group_in if draw(st.booleans()) else draw(st.integers(1, 20))
    smallest = [
        max(1, dilation[i] * (kernel[i] - 1) + 1 - padding[2 * i] - padding[2 * i + 1])
        for i in (0, 1)
    ]
    return ConvCase(
        groups * group_in,
        groups * group_out,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        h=draw(st.integers(smallest[0], smallest[0] + 17)),
        w=draw(st.integers(smallest[1], smallest[1] + 17)),
        n=draw(st.integers(0, 3)),
        algorithm="winograd" if winograd else "direct",
    )


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    case=conv_cases(),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    residual_layout=st.sampled_from([None, *LAYOUTS]),
    act=st.sampled_from(ACTIVATIONS),
    threads=st.integers(1, 3),
)
def test_any_convolution(
    assert_accurate, set_threads, case, dtype, layout, residual_layout, act, threads
):
    torch.manual_seed(0)  # hypothesis replays and shrinks within one test
    set_threads(threads)
    if layout == "expanded" and case.n > 0:
        # All pixels of an image are one: so many images that their errors average out.
        case = case._replace(n=FEW // case.k + 1)
    check_case(assert_accurate, case, make_inputs(case, dtype, layout, residual_layout), act)
