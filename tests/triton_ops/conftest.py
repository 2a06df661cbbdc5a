"""Runs the tests of this folder on the Triton kernels.

On a GPU, where there is one. Elsewhere under TRITON_INTERPRET=1, in a process of their own: Triton
decides at its first import whether it interprets. tests/test_triton.py starts that process.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import pytest
import torch
from gpu_kernels import gpu_kernels

if not torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def fewer_instructions() -> None:
    """Spares the interpreter the conditions of overflow that it drops where it does not debug.

    They are a third of its time.
    """
    if "TRITON_INTERPRET" in os.environ:
        from triton.runtime.interpreter import interpreter_builder

        assert not interpreter_builder.options.debug
        interpreter_builder.options = dataclasses.replace(
            interpreter_builder.options, sanitize_overflow=False
        )


@pytest.fixture(scope="module", autouse=True)
def triton_kernels() -> Iterator[None]:
    """Chooses the backend, and the GPU for tensors that are made without a device."""
    if torch.cuda.is_available():
        torch.set_default_device("cuda")
    with gpu_kernels("triton"):
        yield
    torch.set_default_device(None)
