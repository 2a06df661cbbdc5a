"""How much memory a network's activations take, read off the meta device without computing."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["ActivationMemory", "activation_memory"]


@dataclass(frozen=True)
class ActivationMemory:
    """Bytes of activations of a network that fuses nothing, its input among them."""

    inference: int
    """The most that is alive at one moment of a forward pass without gradients."""
    training: int
    """What a forward pass keeps for the backward pass, parameters and buffers not counted."""


def activation_memory(model: nn.Module, input_shape: Sequence[int]) -> ActivationMemory | None:
    """The activations' bytes for an input of this shape.

    Args:
        model: on the meta device; its training mode is left as it is.
        input_shape: batch first.

    Returns:
        None where the model does not run on the meta device, or not in training mode.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    x = torch.empty(*input_shape, dtype=dtype, device="meta")
    was_training = model.training
    try:
        model.eval()
        peak = _peak(model, x)
        model.train()
        return ActivationMemory(peak, _saved(model, x))
    except (NotImplementedError, RuntimeError, ValueError):
        return None
    finally:
        model.train(was_training)


def _peak(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), _Live(x) as live:
        model(x.clone())
    return live.peak


class _Live(TorchDispatchMode):
    """Counts the bytes of the storages that operators made and that somebody still holds."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._holders: dict[int, int] = {}
        self._seen: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operands = {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf) not in operands:
                self._hold(leaf)
        self.peak = max(self.peak, self._now)
        return result

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._holders:
            self._holders[key] = 0
            self._now += size
        self._holders[key] += 1
        weakref.finalize(tensor, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self._now -= size


def _saved(model: nn.Module, x: Tensor) -> int:
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # with the tensor itself, so that no later storage has its address

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in own:
            kept[key] = tensor
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = model(x)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
