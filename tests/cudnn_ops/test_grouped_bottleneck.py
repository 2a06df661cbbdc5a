"""grouped_bottleneck and live_bottleneck on cuDNN: blocks, dtypes, activations."""

from __future__ import annotations

import pytest
import torch
from bottleneck_case import BLOCKS, check_block, fused_block, make_block
from conv_case import ACTIVATIONS, DTYPES

from fastres import ops

EVERY_BLOCK = pytest.mark.parametrize("case", BLOCKS.values(), ids=BLOCKS.keys())


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
    check_block(assert_accurate, BLOCKS["dilated, /2"], x, constants, act)


@pytest.mark.parametrize("name", ["ResNeXt 4", "ResNet", "ResNeXt 32, /2"])
def test_live_weights_give_the_same(name):
    case = BLOCKS[name]
    x, constants = make_block(case)
    layers = [tensor for layer in zip(*constants, strict=True) for tensor in layer]
    out = ops.live_bottleneck(
        x, *layers, stride=case.stride, dilation=case.dilation, groups=case.groups
    )
    torch.testing.assert_close(out, fused_block(case, x, constants, "relu"))
