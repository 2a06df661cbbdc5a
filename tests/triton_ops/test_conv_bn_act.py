"""conv_bn_act and pack_conv_weight in Triton: paths, dtypes, edges, groups, strides, NaN."""

from __future__ import annotations

import pytest
import torch
from conv_case import (
    ACTIVATIONS,
    DTYPES,
    LAYOUTS,
    PATHS,
    check_case,
    eager,
    exact,
    fused,
    make_inputs,
    same,
)

from fastres import ops, reference
from fastres.schema import packed_weight

# One of each way that channels are laid on tiles, and of each way that taps are.
KINDS = ("1x1", "1x1/2", "3x3 wide", "3x3 groups of 4", "3x3 groups of 1, /2", "groups of 6")
# Winograd's algorithm is the CPU's: here those cases are the same convolutions again. The largest
# take the interpreter seconds, on the way of others.
LARGE = ("3x3 of 512", "1x1 of 2048", "7x7/2 stem", "3x3 groups of 4, /2", "5x5 depthwise")
DIRECT = {
    name: case for name, case in PATHS.items() if case.algorithm == "direct" and name not in LARGE
}
EVERY_PATH = pytest.mark.parametrize("case", DIRECT.values(), ids=DIRECT.keys())
EVERY_KIND = pytest.mark.parametrize("case", [PATHS[name] for name in KINDS], ids=KINDS)


@EVERY_PATH
def test_paths_match_eager(assert_accurate, case):
    check_case(assert_accurate, case, make_inputs(case, residual_layout="nchw"), "relu")


@EVERY_KIND
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_reduced_dtypes(assert_accurate, case, dtype):
    inputs = make_inputs(case, dtype, "nchw", residual_layout="channels_last")
    check_case(assert_accurate, case, inputs, "relu")
    check_case(assert_accurate, case, inputs._replace(residual=None))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 1), (5, 2)], ids=str)
def test_odd_image_sizes(assert_accurate, size):
    for name in KINDS:
        case = PATHS[name]._replace(h=size[0], w=size[1])
        check_case(assert_accurate, case, make_inputs(case))


@pytest.mark.parametrize("group_channels", [1, 2, 3, 4, 8, 16, 32])
def test_group_widths(assert_accurate, group_channels):
    for groups, stride in ((2, 1), (5, 2)):
        channels = groups * group_channels
        case = same(channels, channels, 3, stride, groups, h=5, w=7, n=1)
        check_case(assert_accurate, case, make_inputs(case, torch.float16), "relu")


def test_several_tiles_each_way(assert_accurate):
    for case in (same(40, 150, 1, h=29, w=23), same(40, 40, groups=10, h=29, w=23)):
        check_case(assert_accurate, case, make_inputs(case, torch.bfloat16), "relu")


@EVERY_KIND
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(assert_accurate, case, layout):
    check_case(assert_accurate, case, make_inputs(case, torch.float32, layout, layout), "relu")


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_activations(assert_accurate, act, dtype):
    inputs = make_inputs(PATHS["1x1"], dtype, residual_layout="channels_last")
    # Wide enough to reach both ends of relu6 and the saturated sigmoid.
    inputs = inputs._replace(scale=inputs.scale * 8)
    check_case(assert_accurate, PATHS["1x1"], inputs, act)


@EVERY_KIND
@pytest.mark.parametrize("value", [float("nan"), float("-inf")], ids=str)
def test_not_finite_values_stay_where_eager_has_them(assert_accurate, case, value):
    case = case._replace(h=6, w=5)
    for act in ("relu", "leaky_relu"):
        inputs = make_inputs(case)
        inputs.x[1, case.c // 2, case.h // 2, case.w // 2] = value
        inputs.x[0, case.c - 1, case.h - 1, 0] = value
        check_case(assert_accurate, case, inputs, act)


@EVERY_KIND
def test_empty_batch(case):
    inputs = make_inputs(case)
    out = fused(case, inputs._replace(x=inputs.x[:0]), "relu")
    _, k, h, w = eager(case, inputs).shape
    assert out.shape == (0, k, h, w)
    assert out.stride() == (h * w * k, 1, w * k, k)


def test_float64_runs_on_the_reference():
    case = PATHS["3x3 groups of 4"]
    inputs = make_inputs(case)
    double = type(inputs)(*(None if t is None else t.double() for t in inputs))
    torch.testing.assert_close(fused(case, double, "relu"), exact(case, inputs, "relu"))


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("3x3", packed_weight.PLAIN),
        ("3x3 groups of 4", packed_weight.PLAIN),
        ("3x3 wide", packed_weight.WINOGRAD),
    ],
    ids=str,
)
def test_weights_that_other_backends_packed(name, layout):
    case = PATHS[name]
    inputs = make_inputs(case)
    packed = reference.pack_conv_weight(inputs.weight, inputs.scale, case.groups, layout=layout)
    out = ops.conv_bn_act(inputs.x, packed, inputs.shift, **case.arguments())
    torch.testing.assert_close(out, fused(case, inputs))


@EVERY_KIND
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_live_weight_gives_the_same_bits(case, dtype):
    inputs = make_inputs(case, dtype, residual_layout="nchw")
    arguments = case.arguments()
    del arguments["kernel_size"]
    out = ops.live_conv_bn_act(*inputs, **arguments, act="relu")
    assert torch.equal(out, fused(case, inputs, "relu"))


@EVERY_PATH
def test_packs_what_the_reference_packs(case):
    inputs = make_inputs(case, torch.bfloat16)
    channels_last = inputs.weight.to(memory_format=torch.channels_last)
    layout = packed_weight.native_layout(tuple(inputs.weight.shape), case.groups, "direct")
    for weight, scale in ((inputs.weight, inputs.scale), (channels_last, None)):
        packed = ops.pack_conv_weight(weight, scale, case.groups, case.algorithm)
        expected = reference.pack_conv_weight(weight, scale, case.groups, layout=layout)
        assert torch.equal(packed, expected)


@pytest.mark.parametrize("name", ["3x3", "3x3 groups of 4", "3x3 winograd"])
def test_fake_kernels_tell_what_the_real_ones_return(name):
    case = PATHS[name]
    inputs = make_inputs(case)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.fastres.pack_conv_weight.default,
        (inputs.weight, inputs.scale, case.groups, case.algorithm),
        test_utils=tests,
    )


def test_a_mix_of_devices_is_an_error_that_names_the_argument():
    from fastres.triton import operator

    case = PATHS["1x1"]
    inputs = make_inputs(case, residual_layout="nchw")
    packed = ops.pack_conv_weight(inputs.weight)
    geometry = tuple(case.arguments().values())
    elsewhere = torch.device("meta")
    run = operator("conv_bn_act")
    for name, changed in (
        ("packed", (inputs.x, packed.to(elsewhere), inputs.shift, None)),
        ("shift", (inputs.x, packed, inputs.shift.to(elsewhere), None)),
        ("residual", (inputs.x, packed, inputs.shift, inputs.residual.to(elsewhere))),
    ):
        with pytest.raises(ValueError, match=f"{name} must be on the same device as x, got meta"):
            run(*changed, *geometry, "relu", 0.0)
