"""What ``memory="save"`` computes again in backward: what that saves and what it costs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from .._activation_memory import activation_memory
from .._meta import run_on_meta

__all__ = ["Rebuilt", "Saving", "measure"]


@dataclass(frozen=True)
class Rebuilt:
    """A convolution whose output is not kept for backward, but computed again there."""

    module: str
    """Its path, as in ``Fused.modules``."""
    multiply_adds: int
    """For one value of its output."""
    bytes: int | None = None
    """Of its output, for one image; None where the shape is not known."""


@dataclass(frozen=True)
class Saving:
    """What all of a model's rebuilt convolutions come to, for an input of one shape."""

    bytes: int
    """That are not kept for backward, an image."""
    eager_bytes: int | None
    """That eager PyTorch keeps, an image; None where it does not run in training mode."""
    extra_work: float
    """Multiply-adds of the rebuilt convolutions over those of all in a forward pass."""


class _Outputs:
    """Hooks that add up, by module, bytes and multiply-adds of convolutions' outputs."""

    def __init__(self, model: nn.Module) -> None:
        self.bytes: defaultdict[str, int] = defaultdict(int)
        self.multiply_adds: defaultdict[str, int] = defaultdict(int)
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(self._noting(name))

    def _noting(self, name: str) -> Any:
        def note(module: nn.Conv2d, inputs: Any, output: Tensor) -> None:
            self.bytes[name] += output.nbytes
            self.multiply_adds[name] += output.numel() * module.weight[0].numel()

        return note


def measure(
    model: nn.Module, input_shape: Sequence[int], rebuilt: Sequence[Rebuilt]
) -> tuple[list[Rebuilt], Saving]:
    """Runs a model on the meta device, without computing, and notes its convolutions' outputs.

    Args:
        model: not accelerated; used up.
        input_shape: of its one input, batch first.
        rebuilt: its rebuilt convolutions. Functional ones have no module and get no bytes.

    Raises:
        ValueError: the model does not run with such an input, or not on the meta device.
    """
    on_meta = model.to("meta")
    on_meta.eval()
    memory = activation_memory(on_meta, input_shape)
    outputs = _Outputs(on_meta)
    run_on_meta(on_meta, input_shape, "explain")
    # A convolution that is called several times is listed once for each call, or once, in a part
    # that is itself called several times: its outputs are shared out among what is listed.
    listed = Counter(one.module for one in rebuilt)
    images = input_shape[0]
    measured = [
        replace(one, bytes=outputs.bytes[one.module] // (images * listed[one.module]))
        if one.module in outputs.bytes
        else one
        for one in rebuilt
    ]
    again = sum(outputs.multiply_adds[name] for name in listed)
    saving = Saving(
        sum(one.bytes or 0 for one in measured),
        None if memory is None else memory.training // images,
        again / max(1, sum(outputs.multiply_adds.values())),
    )
    return measured, saving
