"""Runs the tests of this folder on the CUDA kernels.

On a GPU, where there is one. Elsewhere ptxemu runs on the CPU what nvcc compiles.
"""

from __future__ import annotations

from collections.abc import Iterator

import cuda_emulation
import pytest
import torch
from gpu_kernels import gpu_kernels

from fastres import _library


@pytest.fixture(scope="module", autouse=True)
def cuda_kernels() -> Iterator[None]:
    """Chooses the backend, and the GPU for tensors that are made without a device."""
    if "cuda" in _library.available_backends():
        torch.set_default_device("cuda")
        with gpu_kernels("cuda"):
            yield
        torch.set_default_device(None)
        return
    if not cuda_emulation.HAS_NVCC:
        pytest.skip("there is neither a GPU nor an nvcc")
    with cuda_emulation.emulated_operators():
        yield
