"""Kernels read nothing beside their inputs: each lies between two pages that cannot be read."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable

import pytest
import torch
from bottleneck_case import BLOCKS, block_arguments, make_block
from conv_case import PATHS, make_inputs
from torch import Tensor

from fastres import ops

pytestmark = [
    pytest.mark.usefixtures("kernels"),
    pytest.mark.skipif(sys.platform != "linux", reason="uses mmap and mprotect as Linux has them"),
]

PROT_NONE = 0


@pytest.fixture
def guarded() -> Callable[[Tensor, bool], Tensor]:
    """Copies a dense tensor to memory whose first or last byte is next to a forbidden page.

    A kernel that reads there ends the process with a segmentation fault, in this test.
    """
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def copy(tensor: Tensor, at_end: bool) -> Tensor:
        page, count = mmap.PAGESIZE, tensor.untyped_storage().nbytes()
        inside = -(-count // page) * page
        memory = mmap.mmap(-1, inside + 2 * page)
        first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for forbidden in (first, first + page + inside):
            assert mprotect(forbidden, page, PROT_NONE) == 0
        offset = page + (inside - count if at_end else 0)
        flat = torch.frombuffer(
            memory, dtype=tensor.dtype, count=count // tensor.element_size(), offset=offset
        )
        return flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)

    return copy


@pytest.mark.parametrize("case", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("at_end", [False, True])
def test_conv_bn_act(guarded, case, at_end):
    for dtype, layout in (
        (torch.float32, "channels_last"),
        (torch.float32, "nchw"),
        (torch.bfloat16, "channels_last"),
    ):
        inputs = make_inputs(case, dtype, layout, layout)
        packed = ops.pack_conv_weight(inputs.weight, inputs.scale, case.groups, case.algorithm)
        tensors = (inputs.x, packed, inputs.shift, inputs.residual)
        expected = ops.conv_bn_act(*tensors, **case.arguments(), act="silu")
        tensors = [guarded(tensor, at_end) for tensor in tensors]
        out = ops.conv_bn_act(*tensors, **case.arguments(), act="silu")
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("case", BLOCKS.values(), ids=BLOCKS.keys())
@pytest.mark.parametrize("at_end", [False, True])
def test_grouped_bottleneck(guarded, case, at_end):
    arguments = {"stride": case.stride, "dilation": case.dilation, "groups": case.groups}
    for dtype in (torch.float32, torch.bfloat16):
        x, constants = make_block(case, dtype)
        tensors = [x, *block_arguments(case, constants)]
        expected = ops.grouped_bottleneck(*tensors, **arguments)
        tensors = [guarded(tensor, at_end) for tensor in tensors]
        torch.testing.assert_close(ops.grouped_bottleneck(*tensors, **arguments), expected)
