"""What a ``forward`` learns of its model's tensors other than by computing with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .proxies import PROXIES
from .structure import Facts, facts
from .watching import TraceFailed

# All that ``facts`` holds, in one form or another.
_PROPERTIES = (
    "dtype", "device", "shape", "ndim", "layout", "requires_grad", "is_cuda", "is_cpu", "itemsize",
    "is_sparse", "nbytes",
)  # fmt: skip
_METHODS = (
    "size", "dim", "numel", "nelement", "stride", "is_contiguous", "is_floating_point",
    "is_complex", "element_size", "get_device", "__len__",
)  # fmt: skip
_HARMLESS = {
    *(getattr(Tensor, name).__get__ for name in _PROPERTIES),
    *(getattr(Tensor, name) for name in _METHODS),
    torch.is_floating_point, torch.is_complex, torch.numel,
}  # fmt: skip


class MetadataReads(TorchFunctionMode):
    """Notes the tensors of a model whose dtype, shape and so on Python code reads in the body.

    Args:
        tensors: the model's tensors, by identity: their paths.
        failures: is told where the body computes with such tensors alone, which raises, too.
    """

    def __init__(self, tensors: dict[int, str], failures: list[str]) -> None:
        super().__init__()
        self._failures = failures
        self._tensors = tensors
        self.read: dict[str, Facts] = {}
        """What the facts were, by path."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if len(args) > 0 and id(args[0]) in self._tensors and type(out) not in PROXIES:
            if func not in _HARMLESS:
                self._failures.append("it computes with parameters alone")
                raise TraceFailed(self._failures[-1])
            self.read[self._tensors[id(args[0])]] = facts(args[0])
        return out
