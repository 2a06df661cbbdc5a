"""What Triton makes of the kernels for GPUs that are not here: tensor cores, memory, results.

Compiled for compute capability 8.0, 9.0 and 10.0; that for 8.0 also runs, emulated.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conv_case import ConvCase, same
from torch import Tensor

from fastres import reference
from fastres.schema import packed_weight
from fastres.triton import operator

pytest.importorskip("triton")
from triton_offline import SHARED_LIMIT, TENSOR_CORE, Compiled, on_gpu

# Layers of ResNet-50 and ResNeXt-50: what is tuned for, in their alignment and sizes.
LAYERS = {
    "1x1": same(256, 128, 1, h=56, w=56, n=8),
    "3x3": same(128, 128, h=28, w=28, n=8),
    "3x3/2": same(128, 128, 3, 2, h=28, w=28, n=8),
    "3x3 groups of 4": same(128, 128, groups=32, h=56, w=56, n=8),
    "3x3 groups of 32": same(1024, 1024, groups=32, h=7, w=7, n=8),
}
# (arch, layer, dtype) to train.
TRAINED = [
    *((arch, "1x1", torch.float16) for arch in TENSOR_CORE),
    *((arch, "3x3 groups of 4", torch.bfloat16) for arch in TENSOR_CORE),
    (80, "3x3/2", torch.float32),
]
EVERY_ARCH = pytest.mark.parametrize("arch", TENSOR_CORE)


def image(case: ConvCase, dtype: torch.dtype) -> Tensor:
    return reference.channels_last(torch.randn(case.n, case.c, case.h, case.w).to(dtype))


def geometry(case: ConvCase) -> tuple[Any, ...]:
    return case.stride, case.padding, case.dilation, case.groups


def weight_of(case: ConvCase) -> Tensor:
    fan_in = case.c // case.groups * case.kernel[0] * case.kernel[1]
    return torch.randn(case.k, case.c // case.groups, *case.kernel) / fan_in**0.5


def infer(conv_bn_act: Any, case: ConvCase, x: Tensor) -> Tensor:
    weight = weight_of(case)
    layout = packed_weight.native_layout(tuple(weight.shape), case.groups, "direct")
    packed = reference.pack_conv_weight(weight, None, case.groups, layout=layout)
    return conv_bn_act(
        x, packed, torch.zeros(case.k), None, case.kernel, *geometry(case), "relu", 0.0
    )


def train(operator: Any, case: ConvCase, x: Tensor) -> tuple[Tensor, ...]:
    weight = weight_of(case).to(x.dtype)
    affine = (torch.randn(case.c) / 4, torch.rand(case.c) + 0.5, torch.randn(case.c) / 4)
    config = (*affine, "relu", 0.0, weight)
    y, mean, m2 = operator("conv_stats")(x, *config, *geometry(case))
    grads = (torch.randn_like(y), torch.randn(case.k), torch.randn(case.k) / 16)
    gradients = operator("conv_stats_backward")(
        *grads, x, *config, y, mean, *geometry(case), True, True, True
    )
    return y, mean, m2, *gradients


def check(kernels: list[Compiled], arch: int) -> None:
    assert kernels
    for kernel in kernels:
        assert kernel.shared <= SHARED_LIMIT[arch], kernel.name
        assert kernel.stack == 0, f"{kernel.name} spills {kernel.stack} bytes"


@EVERY_ARCH
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float16) for name in LAYERS), ("3x3", torch.bfloat16)],
    ids=str,
)
def test_inference_uses_tensor_cores(arch, name, dtype):
    with on_gpu(arch) as kernels:
        infer(operator("conv_bn_act"), LAYERS[name], image(LAYERS[name], dtype))
    check(kernels, arch)
    (gemm,) = [kernel for kernel in kernels if kernel.name == "fprop_kernel"]
    assert TENSOR_CORE[arch] in gemm.ptx
    if arch == 80:  # copies of 16 bytes that bypass registers, in flight while others are used
        assert "cp.async.cg.shared.global" in gemm.ptx
        assert "cp.async.wait_group" in gemm.ptx


@pytest.mark.parametrize(("arch", "name", "dtype"), TRAINED, ids=str)
def test_training(arch, name, dtype):
    with on_gpu(arch) as kernels:
        train(operator, LAYERS[name], image(LAYERS[name], dtype))
    check(kernels, arch)
    assert {"fprop_kernel", "dgrad_kernel", "wgrad_kernel"} <= {k.name for k in kernels}
    if dtype != torch.float32:
        for kernel in kernels:
            if kernel.name in ("fprop_kernel", "dgrad_kernel", "wgrad_kernel"):
                narrow = LAYERS[name].groups > 1  # wgmma has no tiles of 16 rows
                wanted = (TENSOR_CORE[arch], "mma.sync") if narrow else (TENSOR_CORE[arch],)
                assert any(instruction in kernel.ptx for instruction in wanted), kernel.name


@EVERY_ARCH
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_block_ends(arch, dtype):
    y, vectors = image(LAYERS["1x1"], dtype), (torch.ones(256),) * 3
    with on_gpu(arch) as kernels:
        operator("affine_add_act")(y, *vectors, y, *vectors, "relu", 0.0)
        operator("affine_add_act_backward")(y, y, *vectors, y, *vectors, "relu", 0.0)
    check(kernels, arch)
    for kernel in kernels:
        if kernel.name.startswith("affine"):
            assert ".v4.b32" in kernel.ptx  # 16 bytes an access


def test_a_block_end_of_one_tile():
    """Triton takes an argument that is 1 for a constant, and a constant for a number of Python."""
    y, vectors = image(same(16, 16, 1, h=3, w=2), torch.float32), (torch.ones(16),) * 3
    with on_gpu(90) as kernels:
        operator("affine_add_act_backward")(y, y, *vectors, y, *vectors, "relu", 0.0)
    assert any(kernel.name.startswith("affine_add_act_backward") for kernel in kernels)


EMULATED = {
    "1x1": same(64, 32, 1, h=9, w=7),
    "1x1, several steps": same(192, 32, 1, h=9, w=7),
    "3x3": same(32, 24, h=9, w=7),
    "3x3 groups of 4": same(32, 32, groups=8, h=9, w=7),
    "3x3/2 groups of 8": same(32, 32, 3, 2, groups=4, h=9, w=7),
    "odd": same(5, 17, h=5, w=3),
}


@pytest.mark.parametrize("case", EMULATED.values(), ids=EMULATED.keys())
def test_emulated_inference(case):
    pytest.importorskip("ptxemu")
    x = image(case, torch.float16)
    with on_gpu(80, emulate=True):
        torch.manual_seed(1)
        out = infer(operator("conv_bn_act"), case, x)
    torch.manual_seed(1)
    expected = infer(reference.conv_bn_act, case, x.float())
    assert (out - expected).norm() <= 2**-11 * expected.norm()  # half a unit in the last place


@pytest.mark.parametrize("name", ["1x1", "3x3 groups of 4", "3x3/2 groups of 8"])
def test_emulated_training(name):
    pytest.importorskip("ptxemu")
    case = EMULATED[name]
    x = image(case, torch.float16)
    with on_gpu(80, emulate=True):
        torch.manual_seed(1)
        found = train(operator, case, x)
    torch.manual_seed(1)
    expected = train(lambda op: getattr(reference, op), case, x)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.float() - theirs.float()).norm() <= 4e-3 * theirs.float().norm()
