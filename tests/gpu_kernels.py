"""Kernels of a GPU for tests that run on one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from fastres import _library


@contextlib.contextmanager
def gpu_kernels(backend: str) -> Iterator[None]:
    """Sets the backend, and that eager's float32, the yardstick, is not rounded to tf32."""
    before, tf32 = _library.get_backend(), torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    _library.set_backend(backend)
    yield
    _library.set_backend(before)
    torch.backends.cudnn.allow_tf32 = tf32
