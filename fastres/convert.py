"""Models of other frameworks, as PyTorch modules with their weights."""

import re
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from . import _keras_layers as layers
from .accelerate import accelerate
from .forms import joined_convs

__all__ = ["from_keras"]

#: Key in ``node.meta``: how many channels, or features, a value has.
_CHANNELS = "channels"


def from_keras(model: Any) -> fx.GraphModule:
    """A Keras 3 model as a PyTorch module with the same weights, accelerated.

    Any ``Sequential`` or functional model of the layers that ResNets, ResNeXts and DenseNets are
    made of: convolutions (grouped and depthwise too), BatchNormalization, pooling, padding, ReLU
    and its kin, Add, Concatenate, Dense, slices of channels (also those of ``Lambda``), models in
    models. Convolutions of one group each that are concatenated become one grouped convolution.
    Modules have the names of the layers. It needs Keras to run on any backend; weights are copied.

    Args:
        model: a built ``keras.Model`` with ``data_format="channels_last"`` and one input.

    Returns:
        A module in eval mode. Float32 ``[N, C, H, W]`` where the Keras model takes
        ``[N, H, W, C]``; images among the outputs are ``[N, C, H, W]``, too; several outputs are a
        tuple. It trains as any module: BatchNorm momenta and dropout rates are the Keras model's.

    Raises:
        TypeError: not a Sequential or functional Keras model.
        ValueError: a layer, or a setting of one, has no counterpart; names it. Or there are several
            inputs.
    """
    module = _converted(model)
    module.eval()
    accelerate(module)
    return module


def _converted(model: Any) -> fx.GraphModule:
    functional = getattr(model, "_functional", None) or model  # a Sequential has it inside
    by_depth = getattr(functional, "_nodes_by_depth", None)
    if by_depth is None:
        raise TypeError(
            f"from_keras: got {type(model).__name__}, expected a built Sequential or functional "
            "keras.Model"
        )
    if len(functional.inputs) != 1:
        raise ValueError(f"from_keras: model has {len(functional.inputs)} inputs, expected 1")
    return _Builder(functional, by_depth).build(type(model).__name__)


class _Builder:
    """Builds the graph of one functional model."""

    def __init__(self, model: Any, by_depth: dict[int, list[Any]]) -> None:
        self._model = model
        self._by_depth = by_depth
        self._graph = fx.Graph()
        self._modules: dict[str, nn.Module] = {}
        self._names: dict[int, str] = {}
        self._values: dict[int, fx.Node] = {}

    def build(self, name: str) -> fx.GraphModule:
        (image,) = self._model.inputs
        self._values[id(image)] = self._graph.placeholder("x")
        self._values[id(image)].meta[_CHANNELS] = image.shape[-1]
        for call in self._calls():
            self._add(call)
        outputs = [self._values[id(output)] for output in self._model.outputs]
        self._graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        _join_groups(self._graph, self._modules)
        return fx.GraphModule(self._modules, self._graph, re.sub(r"\W", "_", name))

    def _calls(self) -> Iterator[Any]:
        for depth in sorted(self._by_depth, reverse=True):
            for call in self._by_depth[depth]:
                if call.input_tensors:  # else it is an input
                    yield call

    def _add(self, call: Any) -> None:
        name = self._module_of(call)
        inputs = tuple(self._values[id(tensor)] for tensor in call.input_tensors)
        node = self._graph.call_module(name, inputs)
        node.meta[_CHANNELS] = call.outputs[0].shape[-1]
        if len(call.outputs) != 1:
            raise ValueError(f"from_keras: layer {name!r} has several outputs, expected one")
        self._values[id(call.outputs[0])] = node

    def _module_of(self, call: Any) -> str:
        layer = call.operation
        if id(layer) in self._names:  # a layer that is called twice
            return self._names[id(layer)]
        name = self._names[id(layer)] = self._free_name(layer.name)
        shapes = [tuple(tensor.shape) for tensor in call.input_tensors]
        try:
            if type(layer).__name__ == "GetItem":
                self._modules[name] = layers.sliced(call.arguments.args[1], shapes[0])
            elif hasattr(layer, "_nodes_by_depth") or hasattr(layer, "_functional"):
                self._modules[name] = _converted(layer)
            else:
                self._modules[name] = layers.to_torch(layer, shapes)
        except layers.Unsupported as error:
            raise ValueError(f"from_keras: layer {layer.name!r}: {error}") from error
        return name

    def _free_name(self, name: str) -> str:
        name = re.sub(r"\W", "_", name)
        return name if name not in self._modules else self._free_name(f"{name}_")


def _join_groups(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Makes one grouped convolution of those that each read a slice and are concatenated."""
    for node in list(graph.nodes):
        if node.op != "call_module" or not layers.is_concatenation(modules[node.target]):
            continue
        convs = [modules.get(str(branch.target)) for branch in node.args]
        source = _source_of_slices(node.args, modules)
        if source is None or not all(isinstance(conv, nn.Conv2d) for conv in convs):
            continue
        first = convs[0]
        widths = {conv.in_channels for conv in convs if isinstance(conv, nn.Conv2d)}
        alike = {repr(conv) for conv in convs}
        distinct = len({id(conv) for conv in convs}) == len(convs)
        if len(widths | alike) > 2 or not distinct or not isinstance(first, nn.Conv2d):
            continue
        modules[node.target] = joined_convs(convs, dim=0, groups=len(convs) * first.groups)
        branches = list(node.args)
        node.args = (source,)
        for branch in branches:
            (part,) = branch.args
            for old in (branch, part):
                if not old.users:
                    graph.erase_node(old)
                    modules.pop(str(old.target), None)


def _source_of_slices(branches: Any, modules: dict[str, nn.Module]) -> fx.Node | None:
    """The value whose channels the branches read, each its own, in order and none left over."""
    end, source = 0, None
    for branch in branches:
        if branch.op != "call_module" or len(branch.users) != 1 or len(branch.args) != 1:
            return None
        (part,) = branch.args
        bounds = None
        if part.op == "call_module":
            bounds = layers.channel_slice_of(modules[part.target])
        if bounds is None or bounds[0] != end or (source or part.args[0]) is not part.args[0]:
            return None
        source, end = part.args[0], bounds[1]
    return source if source is not None and source.meta[_CHANNELS] == end else None
