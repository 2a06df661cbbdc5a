"""What a model keeps for backward, measured."""

from typing import Any

import torch
from torch import Tensor, nn


def saved_bytes(model: nn.Module, *inputs: Any) -> int:
    """Bytes that a forward pass keeps for backward, each tensor counted once.

    Parameters and buffers do not count: they are there anyway.
    """
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # the tensors too, so that no address is used again

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(*inputs)
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in own)
