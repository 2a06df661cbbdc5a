"""Which algorithm computes the output of a dense 3x3 convolution."""

from __future__ import annotations

import torch

from .. import _library


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 values by the instruction set that is used."""
    native = _library.diagnostics()
    return native is not None and bool(native.multiplies_bfloat16())


def for_output(algorithm: str, in_channels: int, dtype: torch.dtype = torch.float32) -> str:
    """What to compute an output by where ``algorithm`` may be used; convolution/winograd.h has why.

    Args:
        algorithm: "direct" or "winograd".
        in_channels: of a group.
        dtype: of the input.
    """
    native = _library.diagnostics() if algorithm == "winograd" else None
    if native is not None and native.prefers_direct(in_channels, dtype == torch.bfloat16):
        return "direct"
    return algorithm
