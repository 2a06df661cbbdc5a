"""Runs the tests of this folder on cuDNN's operators.

On a GPU, where there is one. Elsewhere on the CPU's tensors, for which they run PyTorch's
convolution and all that follows apart: what they make of their arguments is the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from gpu_kernels import gpu_kernels

from fastres import _library, composed, cudnn


@pytest.fixture(scope="module", autouse=True)
def cudnn_operators() -> Iterator[None]:
    """Chooses the backend, and the GPU for tensors that are made without a device."""
    if "cudnn" in _library.available_backends():
        torch.set_default_device("cuda")
        with gpu_kernels("cudnn"):
            yield
        torch.set_default_device(None)
        return
    library = torch.library.Library("fastres", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that kernels are overridden
        for name, kernel in (cudnn.OPERATORS | composed.OPERATORS).items():
            library.impl(name, kernel, "CPU", allow_override=True)
    yield
    library._destroy()
