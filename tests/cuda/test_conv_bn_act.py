"""conv_bn_act and pack_conv_weight in CUDA: paths, dtypes, tiles, edges, groups, strides, NaN."""

from __future__ import annotations

import pytest
import torch
from conv_case import (
    ACTIVATIONS,
    DTYPES,
    PATHS,
    ConvCase,
    check_case,
    exact,
    fused,
    make_inputs,
    same,
)

from fastres import ops, reference
from fastres.schema import packed_weight

# One of each kernel: whole chunks of channels, single elements, each width of group.
KINDS = ("3x3 wide", "3x3/2", "3x3 groups of 4, /2", "3x3 groups of 8", "3x3 groups of 16",
         "3x3 groups of 32", "7x7/2 stem, 17 channels", "groups of 24")  # fmt: skip
# Winograd's algorithm is the CPU's: here those cases are the same convolutions again.
DIRECT = {name: case for name, case in PATHS.items() if case.algorithm == "direct"}
EVERY_KIND = pytest.mark.parametrize("case", [PATHS[name] for name in KINDS], ids=KINDS)


@pytest.mark.parametrize("case", DIRECT.values(), ids=DIRECT.keys())
def test_paths_match_eager(assert_accurate, case):
    inputs = make_inputs(case, torch.float16, residual_layout="nchw")
    check_case(assert_accurate, case, inputs, "relu")


@EVERY_KIND
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_dtypes(assert_accurate, case, dtype):
    inputs = make_inputs(case, dtype, "nchw", residual_layout="channels_last")
    check_case(assert_accurate, case, inputs, "relu")
    check_case(assert_accurate, case, inputs._replace(residual=None))


# Each tile that the launcher chooses, by the number of blocks that there would be: 108 and more.
TILES = {
    "128x64": same(16, 64, 1, n=1, h=111, w=125),
    "128x128": same(16, 136, 1, n=1, h=111, w=64),
    "128x64, from single elements": same(3, 40, 3, 2, n=1, h=223, w=249),
}


@pytest.mark.parametrize("case", TILES.values(), ids=TILES.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_outputs(assert_accurate, case, dtype):
    check_case(assert_accurate, case, make_inputs(case, dtype), "relu")


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (17, 2)], ids=str)
def test_odd_image_sizes(assert_accurate, size):
    for name in ("3x3 wide", "3x3 groups of 4, /2", "3x3 groups of 32"):
        case = PATHS[name]._replace(h=size[0], w=size[1])
        check_case(assert_accurate, case, make_inputs(case, torch.bfloat16))


@pytest.mark.parametrize("groups", [2, 3, 16])
@pytest.mark.parametrize("width", [4, 8, 16, 32])
def test_groups_that_do_not_fill_a_block(assert_accurate, width, groups):
    case = same(groups * width, groups * width, groups=groups, h=9, w=11, n=2)
    for dtype in (torch.float16, torch.float32):
        check_case(assert_accurate, case, make_inputs(case, dtype), "relu")


def test_far_taps_of_narrow_groups(assert_accurate):
    for dilation, stride in (((2, 3), (1, 1)), ((1, 2), (2, 3)), ((9, 17), (1, 1))):
        case = ConvCase(
            16, 16, stride=stride, padding=(4, 3, 2, 5), dilation=dilation, groups=4, h=23, w=37
        )
        check_case(assert_accurate, case, make_inputs(case, torch.float16))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(assert_accurate, act):
    case = PATHS["3x3 wide"]
    inputs = make_inputs(case, torch.bfloat16, residual_layout="nchw")
    check_case(assert_accurate, case, inputs._replace(scale=inputs.scale * 3), act)


@pytest.mark.parametrize("name", ["3x3 wide", "3x3 groups of 8", "3x3"])
def test_a_nan_reaches_what_it_reaches_in_eager(name):
    case = PATHS[name]
    inputs = make_inputs(case)
    inputs.x[0, 1, 2, 3] = float("nan")
    out = fused(case, inputs, "relu")
    assert torch.equal(out.isnan(), exact(case, inputs, "relu").isnan())


@pytest.mark.parametrize("name", KINDS)
def test_is_deterministic(name):
    case = PATHS[name]
    inputs = make_inputs(case, torch.float16)
    assert torch.equal(fused(case, inputs), fused(case, inputs))


def test_an_empty_batch():
    case = PATHS["3x3 wide"]._replace(n=0)
    assert fused(case, make_inputs(case)).shape == (0, 48, 14, 14)


@pytest.mark.parametrize("shape", [(18, 33, 1, 1), (64, 3, 7, 7), (20, 4, 3, 3), (34, 3, 2, 2)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packs_as_the_reference_does(shape, dtype):
    weight, scale = torch.randn(shape).to(dtype), torch.randn(shape[0])
    for layout in (torch.contiguous_format, torch.channels_last):
        packed = ops.pack_conv_weight(weight.to(memory_format=layout), scale, 2)
        expected = reference.pack_conv_weight(weight, scale, 2, layout=packed_weight.KRSC)
        assert torch.equal(packed, expected)
    scaled = weight.float() * scale[:, None, None, None]
    assert torch.equal(reference.unpack_conv_weight(packed), scaled)


@pytest.mark.parametrize("name", ["3x3 wide", "3x3 groups of 4, /2", "7x7/2 stem, 17 channels"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_live_weights_give_the_same_bits(name, dtype):
    case = PATHS[name]
    inputs = make_inputs(case, dtype, residual_layout="nchw")
    weight = inputs.weight
    # Strides that are neither layout's: the packing kernel takes any.
    padded = torch.full((*weight.shape[:3], weight.shape[3] + 1), float("nan"), dtype=dtype)
    padded[..., :-1] = weight
    arguments = case.arguments()
    del arguments["kernel_size"]
    for same_weight in (weight, padded[..., :-1]):
        out = ops.live_conv_bn_act(
            inputs.x, same_weight, inputs.scale, inputs.shift, inputs.residual, **arguments,
            act="silu",
        )  # fmt: skip
        assert torch.equal(out, fused(case, inputs, "silu"))
