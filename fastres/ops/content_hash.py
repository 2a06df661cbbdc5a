"""``content_hash``: whether parameters have changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference

_OPS = torch.ops.fastres


def content_hash(tensors: Sequence[Tensor]) -> list[int]:
    """One hash per tensor, of its elements: tells that a parameter changed, however that was done.

    Writing through ``parameter.data`` bumps no version counter; this sees it.

    Args:
        tensors: dense tensors of any dtype, shape, strides and device.

    Returns:
        A 64-bit int for each, to be compared within one process and backend. Equal for equal
        elements of one dtype, shape and strides; different where any of these differs, but for a
        chance of about 2**-64.

    Raises:
        TypeError: something is not a tensor.
    """
    tensors = list(tensors)
    for index, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"content_hash: tensors[{index}] must be a tensor, got {type(tensor).__name__}"
            )
    if any(tensor.device.type != "cpu" for tensor in tensors) or not tensors:
        return reference.content_hash(tensors)
    return _OPS.content_hash(tensors)


@torch.library.register_fake("fastres::content_hash")
def _content_hash_fake(tensors: Sequence[Tensor]) -> list[int]:
    raise RuntimeError("content_hash: reads its tensors' values, so it cannot be traced")
