"""grouped_bottleneck in Triton: blocks, dtypes, strides, edges."""

from __future__ import annotations

import pytest
import torch
from bottleneck_case import BLOCKS, block_arguments, check_block, fused_block, make_block
from conv_case import ACTIVATIONS, DTYPES

from fastres import ops

NAMES = (
    "one channel", "ResNet", "ResNet, winograd", "ResNet, /2", "ResNeXt 4", "ResNeXt 8",
    "ResNeXt 16", "ResNeXt 32, /2", "depthwise", "groups of 6, /2", "dilated", "dilated, /2",
    "one pixel, /2", "wide",
)  # fmt: skip
EVERY_BLOCK = pytest.mark.parametrize("case", [BLOCKS[name] for name in NAMES], ids=NAMES)


@EVERY_BLOCK
def test_blocks_match_eager(assert_accurate, case):
    check_block(assert_accurate, case, *make_block(case))


@pytest.mark.parametrize("name", ["ResNeXt 4", "ResNeXt 32, /2"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_reduced_dtypes(assert_accurate, name, dtype):
    for layout in ("nchw", "sliced"):
        check_block(assert_accurate, BLOCKS[name], *make_block(BLOCKS[name], dtype, layout))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(assert_accurate, act):
    x, constants = make_block(BLOCKS["dilated, /2"])
    constants = constants._replace(scales=[scale * 3 for scale in constants.scales])
    check_block(assert_accurate, BLOCKS["dilated, /2"], x, constants, act)


def test_not_finite_values_stay_where_eager_has_them(assert_accurate):
    case = BLOCKS["ResNeXt 8"]
    x, constants = make_block(case)
    x[case.n - 1, case.c // 2, case.h // 2, case.w // 2] = float("nan")
    check_block(assert_accurate, case, x, constants)


@pytest.mark.parametrize("name", ["ResNeXt 4", "ResNet, winograd", "ResNeXt 32, /2"])
def test_live_weights_give_the_same_bits(name):
    case = BLOCKS[name]
    x, constants = make_block(case)
    layers = [tensor for layer in zip(*constants, strict=True) for tensor in layer]
    out = ops.live_bottleneck(
        x, *layers, stride=case.stride, dilation=case.dilation, groups=case.groups,
        algorithm=case.algorithm,
    )  # fmt: skip
    assert torch.equal(out, fused_block(case, x, constants, "relu"))


def test_empty_batch():
    case = BLOCKS["ResNeXt 4"]
    x, constants = make_block(case)
    full, out = (fused_block(case, t, constants, "relu") for t in (x, x[:0]))
    assert out.shape == (0, *full.shape[1:])
    assert out.stride() == full.stride()


def test_a_mix_of_devices_is_an_error_that_names_the_argument():
    from fastres.triton import operator

    case = BLOCKS["ResNeXt 4, /2"]
    x, constants = make_block(case)
    arguments = block_arguments(case, constants)
    for i, name in enumerate(("packed1", "shift1", "packed2")):
        changed = [t.to("meta") if i == j else t for j, t in enumerate(arguments)]
        with pytest.raises(ValueError, match=f"{name} must be on the same device as x, got meta"):
            operator("grouped_bottleneck")(x, *changed, (2, 2), (1, 1), case.groups, "relu")
