"""Where the parameters and buffers of a graph are found, each time that it is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

#: Types of what the kernels take as a parameter; others compute by themselves.
PLAIN_TYPES = {Tensor, nn.Parameter, type(None)}


class Source(Protocol):
    """Where a parameter or buffer is found each time that a graph is run."""

    def read(self, root: nn.Module | None, inputs: Sequence[Any]) -> Tensor | None:
        """The tensor as it is now."""


@dataclass(frozen=True)
class AttributeSource:
    """An attribute of a module; of the graph's root where ``module`` is None."""

    module: nn.Module | None
    name: str

    def read(self, root: nn.Module | None, inputs: Sequence[Any]) -> Tensor | None:
        """The attribute, None if there is none."""
        module = root if self.module is None else self.module
        assert module is not None
        for values in (module._parameters, module._buffers, module.__dict__):
            if self.name in values:
                return values[self.name]
        return None


@dataclass(frozen=True)
class InputSource:
    """An input of the graph, by position."""

    index: int

    def read(self, root: nn.Module | None, inputs: Sequence[Any]) -> Tensor | None:
        """The input."""
        return inputs[self.index]
