"""A plan of training: one way of calling a module that may need gradients, traced and fused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..fx.codegen import Scope, compile_graph
from ..fx.sources import Source
from ..fx.tracing import Pattern, Trace, trace
from ..weights.recipes import DTYPES, Unusable, check_same_device
from .plan import contiguous_form, image_input, is_channels_last, plain_reader, reader_of
from .training_fuse import ROOT, Memory, TrainingGraph, fuse_training, layer_name
from .training_layers import ConvLayer, NormLayer


class TrainingFusion:
    """A traced module, fused for training.

    Args:
        module: the module, in the mode in which it will be called; not kept.
        pattern: how it is called.
        autocast: whether it is called under autocast.
        grad: whether it is called with gradients enabled.
        memory: as for ``fuse_training``.

    Raises:
        TraceFailed: the module cannot be traced.
    """

    def __init__(
        self, module: nn.Module, pattern: Pattern, autocast: bool, grad: bool, memory: Memory
    ) -> None:
        self.trace: Trace = trace(module, pattern, grad)
        reader, self.modules = reader_of(module, self.trace)
        self.result: TrainingGraph = fuse_training(
            self.trace.graph, reader, image_input, autocast, memory
        )


class TrainingPlan:
    """A module fused for training that can be run.

    Args:
        module, pattern, autocast, grad, memory: as for ``TrainingFusion``.

    Raises:
        TraceFailed: the module cannot be traced.
    """

    def __init__(
        self, module: nn.Module, pattern: Pattern, autocast: bool, grad: bool, memory: Memory
    ) -> None:
        fusion = TrainingFusion(module, pattern, autocast, grad, memory)
        graph = fusion.result.graph
        self.structure = fusion.trace.structure
        self.opaque = list(fusion.trace.opaque)
        self._spec = fusion.trace.out_spec
        self._autocast = autocast
        checked = (ConvLayer, NormLayer)
        self._checked = [x if isinstance(x, checked) else None for x in fusion.result.layers]
        self._layers = {layer_name(i): layer for i, layer in enumerate(fusion.result.layers)}
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self._images = [(placeholders.index(node), ids) for node, ids in fusion.result.images]
        self._telling_weight = _telling_weight(fusion.result)
        self._channels_last = compile_graph(graph)
        self._contiguous = compile_graph(contiguous_form(graph, plain_reader(fusion.modules)))

    @property
    def is_useful(self) -> bool:
        """Whether anything was fused."""
        return any(isinstance(layer, ConvLayer) for layer in self._checked)

    def run(self, module: nn.Module, tensors: Sequence[Tensor]) -> Any:
        """Calls the module that was traced with its tensor arguments, in order.

        Raises:
            Unusable: the kernels cannot run with these parameters or inputs; nothing was run.
        """
        self._check(module, tensors)
        function = self._contiguous
        if self._keeps_channels_last(module, tensors):
            function = self._channels_last
        scope = Scope({**self._layers, ROOT: module}, partial(getattr, module))
        leaves = function(scope, *tensors)
        return leaves[0] if self._spec.is_leaf() else self._spec.unflatten(leaves)

    def _check(self, module: nn.Module, tensors: Sequence[Tensor]) -> None:
        weights = [None if layer is None else layer.check(module) for layer in self._checked]
        for index, layers in self._images:
            x = tensors[index]
            if x.dim() != 4:
                raise Unusable(f"input {index} has {x.dim()} dimensions")
            if x.dtype not in DTYPES and layers:
                raise Unusable(f"there is no kernel for {x.dtype} inputs")
            for weight in (weights[i] for i in layers):
                assert weight is not None
                check_same_device(weight, x)
                if not self._autocast and weight.dtype != x.dtype:
                    raise Unusable(f"weights and a {x.dtype} input differ in dtype")

    def _keeps_channels_last(self, module: nn.Module, tensors: Sequence[Tensor]) -> bool:
        if any(map(is_channels_last, tensors)):
            return True
        weight = self._telling_weight
        return weight is not None and is_channels_last(weight.read(module, ()))


def _telling_weight(result: TrainingGraph) -> Source | None:
    """A weight whose memory format can be told; eager's outputs follow the weights' format too."""
    for layer in result.layers:
        if isinstance(layer, ConvLayer):
            _, channels, height, width = layer.conv.weight_shape
            if channels > 1 and height * width > 1:
                return layer.conv.weight
    return None
