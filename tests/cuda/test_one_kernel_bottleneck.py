"""grouped_bottleneck as one CUDA kernel: blocks, dtypes, sizes, and where it is chosen."""

from __future__ import annotations

import cuda_emulation
import pytest
import torch
from bottleneck_case import BottleneckCase, Constants, block_arguments, check_block, make_block
from conv_case import ACTIVATIONS, DTYPES
from torch import Tensor

if not cuda_emulation.HAS_NVCC:
    pytest.skip("there is no nvcc", allow_module_level=True)
if torch.cuda.is_available():
    pytest.skip("on a GPU the launcher cannot be told to choose it", allow_module_level=True)

# Channels of a multiple of 8, groups of 4, 8, 16 and 32; images smaller and larger than a tile.
CASES = {
    "groups of 4": BottleneckCase(64, 128, 64, 32, down=False, h=13, w=9, n=1),
    "groups of 4, /2": BottleneckCase(24, 64, 72, 16, stride=2, h=19, w=23),
    "groups of 8": BottleneckCase(40, 72, 40, 9, down=False, h=21, w=17, n=1),
    "groups of 8, /2": BottleneckCase(72, 64, 136, 8, stride=2, h=9, w=35, n=1),
    "groups of 16": BottleneckCase(32, 96, 32, 6, down=False, h=5, w=11),
    "groups of 16, projection": BottleneckCase(48, 48, 96, 3, h=8, w=8),
    "groups of 32": BottleneckCase(64, 64, 64, 2, down=False, h=10, w=7),
    "groups of 32, /2": BottleneckCase(64, 128, 64, 4, stride=2, h=12, w=18, n=1),
    "dilated": BottleneckCase(32, 32, 32, 8, dilation=2, down=False, h=15, w=12, n=1),
    "dilated, /2": BottleneckCase(16, 32, 40, 4, stride=2, dilation=2, h=15, w=13, n=1),
    "odd output channels": BottleneckCase(16, 32, 17, 4, h=9, w=10, n=1),
    "one pixel": BottleneckCase(16, 16, 16, 4, down=False, h=1, w=1),
    "tall": BottleneckCase(16, 16, 32, 2, h=67, w=3, n=1),
}
EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def one_kernel(case: BottleneckCase, x: Tensor, constants: Constants, act: str = "relu") -> Tensor:
    """The operator, emulated; it has to be one kernel."""
    device = cuda_emulation.Device(one_kernel=cuda_emulation.ALWAYS)
    packed = block_arguments(case, constants)
    packed += [None] * (8 - len(packed))
    out = device.grouped_bottleneck(
        x, *packed, [case.stride] * 2, [case.dilation] * 2, case.groups, act
    )
    name = f"grouped_bottleneck_{case.width // case.groups}"
    suffix = cuda_emulation.SUFFIXES[x.dtype]
    assert [kernel for kernel, *_ in device.launches] == [f"fastres_{name}_{suffix}"]
    return out


@EVERY_CASE
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_blocks_match_eager(assert_accurate, case, dtype):
    check_block(assert_accurate, case, *make_block(case, dtype), operator=one_kernel)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(assert_accurate, act):
    case = CASES["groups of 4, /2"]
    x, constants = make_block(case, torch.bfloat16, "nchw")
    constants = constants._replace(scales=[scale * 3 for scale in constants.scales])
    check_block(assert_accurate, case, x, constants, act, one_kernel)


def test_a_nan_stays_in_its_image():
    case = CASES["groups of 16"]
    x, constants = make_block(case, torch.float16)
    clean = one_kernel(case, x, constants)
    x[0, 3, 2, 2] = float("nan")
    out = one_kernel(case, x, constants)
    assert out[0].isnan().any()
    assert torch.equal(out[1], clean[1])


def test_is_deterministic():
    case = CASES["groups of 8"]
    x, constants = make_block(case, torch.float16)
    assert torch.equal(one_kernel(case, x, constants), one_kernel(case, x, constants))


def test_an_empty_batch():
    case = CASES["groups of 8"]._replace(n=0)
    device = cuda_emulation.Device(one_kernel=cuda_emulation.ALWAYS)
    x, constants = make_block(case, torch.float16)
    packed = block_arguments(case, constants)
    out = device.grouped_bottleneck(x, *packed, None, None, [1, 1], [1, 1], case.groups, "relu")
    assert out.shape == x.shape
    assert not device.launches


def test_what_the_launcher_gives_to_it():
    """Where there is a GPU, tests/cuda/test_grouped_bottleneck.py runs this one."""
    case = BottleneckCase(16, 16, 16, 4, down=False, h=61, w=59)
    assert launches(case, torch.float16) == ["fastres_grouped_bottleneck_4_f16"]


def launches(case: BottleneckCase, dtype: torch.dtype) -> list[str]:
    """The kernels that a block would run."""
    x = torch.empty(case.n, case.c, case.h, case.w, dtype=dtype)
    layers: list[Tensor | None] = []
    for c, k, kernel, groups in case.convs():
        values = k * -(-(c // groups) * kernel**2 // 8) * 8
        layers += [torch.empty(64 + 8 * values + 16, dtype=torch.uint8), torch.empty(k)]
    layers += [None] * (8 - len(layers))
    device = cuda_emulation.Device(emulate=False)
    device.grouped_bottleneck(
        x, *layers, [case.stride] * 2, [case.dilation] * 2, case.groups, "relu"
    )
    return [kernel for kernel, *_ in device.launches]


# ResNeXt-50 32x4d, its blocks after the first of each stage: (channels, width, size).
STAGES = {1: (256, 128, 56), 2: (512, 256, 28), 3: (1024, 512, 14), 4: (2048, 1024, 7)}


@pytest.mark.parametrize(
    ("stage", "batch", "dtype", "chosen"),
    [
        (1, 32, torch.float16, True),
        (1, 32, torch.bfloat16, True),
        (1, 32, torch.float32, False),  # there is none
        (1, 1, torch.float16, False),  # 49 blocks
        (2, 32, torch.float16, False),
        (3, 32, torch.float16, False),  # does not fit
        (4, 32, torch.float16, False),
    ],
)
def test_is_chosen_where_it_pays(stage, batch, dtype, chosen):
    channels, width, size = STAGES[stage]
    case = BottleneckCase(channels, width, channels, 32, down=False, h=size, w=size, n=batch)
    kernels = launches(case, dtype)
    assert (len(kernels) == 1) == chosen
    assert chosen or len(kernels) == 3
