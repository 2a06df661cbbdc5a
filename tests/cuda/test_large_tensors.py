"""Tensors of more than 2**31 elements: the last image gives what it gives alone, bit for bit.

What stands before it is memory that nobody touches, and of large grids only the last blocks run.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Sequence

import cuda_emulation
import pytest
import torch
from affine_case import make_inputs
from bottleneck_case import BottleneckCase, block_arguments, make_block
from conv_case import ConvCase, same
from cuda_emulation import ALWAYS, Device, nchw, nhwc
from torch import Tensor

if not cuda_emulation.HAS_NVCC:
    pytest.skip("there is no nvcc", allow_module_level=True)
if torch.cuda.is_available():
    pytest.skip("on a GPU all blocks would run", allow_module_level=True)

MANY = 2**31
HALF = torch.float16
# Second stages go through the results of all blocks: no operator whose images are compared.
SECOND_STAGES = ("fastres_merge_statistics", "fastres_sum_partials")


class LastBlocks(Device):
    """Runs the last blocks of kernels that go through images."""

    def _first_block(self, kernel: str, grid: int) -> int:
        if kernel in SECOND_STAGES:
            return grid
        return 0 if kernel.startswith("fastres_pack") else max(0, grid - 2)


def untouched(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros that take memory where they are written."""
    size = max(1, math.prod(shape)) * dtype.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = torch.frombuffer(mmap.mmap(-1, size, flags), dtype=dtype)
    return memory[: math.prod(shape)].reshape(tuple(shape))


@pytest.fixture(autouse=True)
def _outputs_untouched(monkeypatch) -> None:
    monkeypatch.setattr(cuda_emulation, "_unwritten", untouched)


def batches(*images: Tensor) -> list[Tensor]:
    """Images as the last ones of batches, of which the largest has more than 2**31 elements."""
    n = MANY // max(image.numel() for image in images) + 2
    found = []
    for image in images:
        batch = untouched((n, *nhwc(image).shape[1:]), HALF)
        batch[-1] = nhwc(image)[0]
        found.append(nchw(batch))
    return found


def check(run: Callable[..., Tensor], *images: Tensor) -> Tensor:
    """Compares the last images of what ``run(device, *images)`` returns; returns it."""
    alone = run(Device(check=False), *images)[-1:]
    assert alone.count_nonzero() > alone.numel() // 4
    assert torch.equal(run(LastBlocks(check=False), *batches(*images))[-1:], alone)
    return alone


CONVOLUTIONS = {
    "3x3": same(64, 64, h=8, w=8),
    "1x1": same(64, 64, 1, h=8, w=8),
    "single elements": same(20, 28, h=8, w=8),
    "groups of 4": same(128, 128, groups=32, h=8, w=8),
    "groups of 32, /2": same(128, 128, 3, 2, groups=4, h=8, w=8),
}
EVERY_CONVOLUTION = pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())


def weight_of(case: ConvCase) -> Tensor:
    return (torch.randn(case.k, case.c // case.groups, *case.kernel) / 16).to(HALF)


@EVERY_CONVOLUTION
def test_inference(case):
    packed = Device().pack_conv_weight(weight_of(case), None, case.groups)
    options = (torch.randn(case.k), None, *case.arguments().values(), "silu", 0.0)
    check(lambda device, x: device.conv_bn_act(x, packed, *options), make_image(case.c, case.h))


@EVERY_CONVOLUTION
def test_training(case):
    affine = torch.randn(case.c), torch.rand(case.c), torch.randn(case.c)
    config = (*affine, "silu", 0.0, weight_of(case))
    geometry = case.stride, case.padding, case.dilation, case.groups
    x, m2, mean = make_image(case.c, case.h), torch.ones(case.k), torch.randn(case.k)
    y = check(lambda device, x: device.conv_stats(x, *config, *geometry)[0], x)
    check(
        lambda device, x, y, grad: device.conv_stats_backward(
            grad, None, m2, x, *config, y, mean, *geometry, True, True, False
        )[0],
        *(x, y, torch.randn(y.shape).to(HALF)),
    )


def test_a_block_in_one_kernel():
    case = BottleneckCase(128, 64, 128, 16, down=False, h=8, w=8, n=1)
    x, constants = make_block(case, HALF)
    constants = (*block_arguments(case, constants), None, None, (1, 1), (1, 1), case.groups, "silu")

    def run(device: Device, x: Tensor) -> Tensor:
        device.one_kernel = ALWAYS
        return device.grouped_bottleneck(x, *constants)

    check(run, x)


def test_the_end_of_a_block():
    inputs = make_inputs((1, 64, 16, 16), "identity", HALF)
    affine, options = inputs[1:4], (None, None, None, "silu", 0.0)
    grad = torch.randn(inputs.y.shape).to(HALF)
    check(
        lambda device, y, residual: device.affine_add_act(y, *affine, residual, *options),
        *(inputs.y, inputs.residual),
    )
    check(
        lambda device, grad, y, residual: device.affine_add_act_backward(
            grad, y, *affine, residual, *options
        )[0],
        *(grad, inputs.y, inputs.residual),
    )


def make_image(channels: int, size: int) -> Tensor:
    return torch.randn(1, channels, size, size).to(HALF)


def test_sizes_beyond_32_bits_are_an_error():
    x, shift, packed = torch.empty(1, 8, 1, 1), torch.empty(8), torch.empty(0, dtype=torch.uint8)
    geometry = (1, 1), (MANY, 1), (0, 0, 0, 0), (1, 1), 1
    with pytest.raises(ValueError, match="a size of 2147483648 is more than"):
        Device(emulate=False).conv_bn_act(x, packed, shift, None, *geometry, "relu", 0.0)
