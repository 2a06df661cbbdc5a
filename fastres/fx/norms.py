"""Reads FX nodes as calls of BatchNorm, in training mode or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..batch_norm import BatchNormCall
from .patterns import NORM_FUNCTIONS, NORM_MODULES, Reader, bind, is_constant, module_kind
from .sources import Source

_TENSORS = ("running_mean", "running_var", "weight", "bias")


@dataclass(frozen=True)
class ModuleNorm:
    """A call of an ``nn.BatchNorm2d`` or ``nn.SyncBatchNorm``."""

    x: fx.Node
    module: _BatchNorm

    @property
    def checks_rank(self) -> bool:
        """Whether it refuses anything but 4 dimensions."""
        return module_kind(self.module) is nn.BatchNorm2d

    @property
    def eps(self) -> float:
        """What is added to the variance."""
        return self.module.eps

    def tensors(self, root: nn.Module | None) -> list[Tensor | None]:
        """Running mean and variance, weight and bias as they are now."""
        return [getattr(self.module, name) for name in _TENSORS]

    def call(self, root: nn.Module | None) -> BatchNormCall:
        """What calling it now amounts to; counts the batch."""
        return BatchNormCall.of(self.module)


@dataclass(frozen=True)
class FunctionNorm:
    """A call of ``F.batch_norm`` with parameters and buffers of modules."""

    x: fx.Node
    sources: tuple[Source | None, ...]
    training: bool
    momentum: float
    eps: float
    checks_rank = False

    def tensors(self, root: nn.Module | None) -> list[Tensor | None]:
        """Running mean and variance, weight and bias as they are now."""
        return [None if source is None else source.read(root, ()) for source in self.sources]

    def call(self, root: nn.Module | None) -> BatchNormCall:
        """What calling it now amounts to."""
        mean, var, weight, bias = self.tensors(root)
        return BatchNormCall(mean, var, weight, bias, self.training, self.momentum, self.eps)


BatchNorm = ModuleNorm | FunctionNorm


def read_batch_norm(node: fx.Node, reader: Reader) -> BatchNorm | str | None:
    """The BatchNorm that a node calls, why it cannot be fused, or None if it calls none."""
    if node.op == "call_module":
        module: Any = reader.module(node)
        if module is None or module_kind(module) not in NORM_MODULES:
            return None
        inputs = node.all_input_nodes
        if len(inputs) != 1 or (node.args != (*inputs,) and node.kwargs != {"input": inputs[0]}):
            return "its BatchNorm is called in an unusual way"
        return ModuleNorm(inputs[0], module)
    if node.op == "call_function" and node.target in NORM_FUNCTIONS:
        return _read_function(node, reader)
    return None


def _read_function(node: fx.Node, reader: Reader) -> FunctionNorm | str:
    names = NORM_FUNCTIONS[node.target]
    defaults = {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5}
    arguments = bind(node, names, **defaults)
    constants = [arguments[name] for name in ("training", "momentum", "eps")]
    sources = [_source(arguments[name], reader) for name in _TENSORS]
    if not is_constant(constants) or any(isinstance(source, str) for source in sources):
        return "its BatchNorm's parameters are computed in forward"
    training, momentum, eps = constants
    if not training and (sources[0] is None or sources[1] is None):
        return "its BatchNorm keeps no running statistics"
    return FunctionNorm(arguments["input"], tuple(sources), training, momentum or 0.0, eps)


def _source(value: Any, reader: Reader) -> Any:
    """Where an argument is found, None for None, a string if it is computed."""
    if value is None:
        return None
    return reader.source(value) or "computed"
