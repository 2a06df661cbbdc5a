"""grouped_bottleneck in CUDA: blocks and dtypes."""

from __future__ import annotations

import pytest
import torch
from bottleneck_case import BLOCKS, check_block, make_block
from conv_case import DTYPES

DIRECT = {name: case for name, case in BLOCKS.items() if case.algorithm == "direct"}


@pytest.mark.parametrize("case", DIRECT.values(), ids=DIRECT.keys())
def test_blocks_match_eager(assert_accurate, case):
    check_block(assert_accurate, case, *make_block(case, torch.float16))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(assert_accurate, dtype):
    case = BLOCKS["ResNeXt 4, /2"]
    check_block(assert_accurate, case, *make_block(case, dtype, "nchw"))
