"""grouped_bottleneck in CUDA: blocks and dtypes."""

from __future__ import annotations

import pytest
import torch
from bottleneck_case import BLOCKS, BottleneckCase, check_block, fused_block, make_block
from conv_case import DTYPES

from fastres import ops

DIRECT = {name: case for name, case in BLOCKS.items() if case.algorithm == "direct"}


@pytest.mark.parametrize("case", DIRECT.values(), ids=DIRECT.keys())
def test_blocks_match_eager(assert_accurate, case):
    check_block(assert_accurate, case, *make_block(case, torch.float16))


def test_a_block_that_the_launcher_gives_to_one_kernel(assert_accurate):
    case = BottleneckCase(16, 16, 16, 4, down=False, h=61, w=59)
    check_block(assert_accurate, case, *make_block(case, torch.float16))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(assert_accurate, dtype):
    case = BLOCKS["ResNeXt 4, /2"]
    check_block(assert_accurate, case, *make_block(case, dtype, "nchw"))


@pytest.mark.parametrize("name", ["ResNeXt 4, /2", "ResNet"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_live_weights_give_the_same_bits(name, dtype):
    case = BLOCKS[name]
    x, constants = make_block(case, dtype)
    layers = [tensor for layer in zip(*constants, strict=True) for tensor in layer]
    out = ops.live_bottleneck(
        x, *layers, stride=case.stride, dilation=case.dilation, groups=case.groups
    )
    assert torch.equal(out, fused_block(case, x, constants, "relu"))
