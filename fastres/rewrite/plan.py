"""A plan: one way of calling a module, traced, fused and compiled to a Python function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, fx, nn

from ..fx.codegen import Scope, compile_graph
from ..fx.effects import Effects
from ..fx.layout import chooses_format, restore_contiguous
from ..fx.names import gives_image, is_trusted
from ..fx.patterns import Reader, module_kind
from ..fx.shapes import Image, fresh_image
from ..fx.sources import AttributeSource, Source
from ..fx.tracing import Pattern, Trace, default_pattern, is_builtin, trace, untouchable_reason
from ..fx.watching import TraceFailed
from ..weights.packing import Constants, Packer, Staleness, packed_number
from ..weights.recipes import DTYPES, Recipe, Unusable, check_same_device
from .fuse import FusedGraph, fuse
from .live import chain_live_bottlenecks, guard_heads, live_form


class Fusion:
    """A traced module, fused.

    Args:
        module: the module; not kept.
        pattern: how it is called.
        autocast: whether it is called under autocast.
        blocks: whether to make whole bottlenecks.
        grad: whether it is called with gradients enabled, of which it will make none.

    Raises:
        TraceFailed: the module cannot be traced.
    """

    def __init__(
        self,
        module: nn.Module,
        pattern: Pattern,
        autocast: bool,
        blocks: bool,
        grad: bool = False,
    ) -> None:
        self.autocast = autocast
        self.trace: Trace = trace(module, pattern, grad)
        self.tensors = _unregistered(module, self.trace.graph)
        reader, self.modules = reader_of(module, self.trace)
        self.result: FusedGraph = fuse(self.trace.graph, reader, image_input, autocast, blocks)

    def reader(self) -> Reader:
        """A reader of the fused graph's modules, to which parameters are nothing special."""
        return plain_reader(self.modules)


def reader_of(module: nn.Module, traced: Trace) -> tuple[Reader, dict[str, nn.Module]]:
    """A reader of a trace's graph, and the modules that it may look into."""
    written = _written_attributes(traced.graph)
    modules = {
        path: leaf
        for path, leaf in traced.leaves.items()
        if not any(attribute.startswith(f"{path}.") for attribute in written)
    }

    def source(node: Any) -> Source | None:
        if not isinstance(node, fx.Node) or node.op != "get_attr" or node.target in written:
            return None
        path, _, name = str(node.target).rpartition(".")
        return AttributeSource(module.get_submodule(path) if path else None, name)

    return Reader(modules, source, lambda found: found.read(module, ())), modules


def _unregistered(module: nn.Module, graph: fx.Graph) -> list[Source]:
    """The attributes that a trace reads other than parameters."""
    found: list[Source] = []
    for node in graph.nodes:
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            owner = module.get_submodule(path)
            if name not in owner._parameters:
                found.append(AttributeSource(owner if path else None, name))
    return found


class AnyFusion(Protocol):
    """A traced module, fused for inference or for training."""

    trace: Trace


_Fusion = TypeVar("_Fusion", bound=AnyFusion)


def walk(model: nn.Module, blocks: bool = True) -> Iterator[tuple[str, Fusion | str]]:
    """``walk_with``, for inference."""
    return walk_with(model, lambda module, pattern: Fusion(module, pattern, False, blocks))


def walk_with(
    model: nn.Module, fuse_module: Callable[[nn.Module, Pattern], _Fusion]
) -> Iterator[tuple[str, _Fusion | str]]:
    """The largest parts of a model that can be traced, called in the usual way, and the others.

    Args:
        model: the model.
        fuse_module: fuses a module that is called in some way; may raise TraceFailed.

    Yields:
        The path of a module, and either its fusion or the reason why there is none. After the
        former come the modules that it calls as they are; after the latter the module's children.
    """
    seen: set[nn.Module] = set()

    def visit(module: nn.Module, path: str) -> Iterator[tuple[str, _Fusion | str]]:
        if module in seen:
            return
        seen.add(module)
        reason = untouchable_reason(module)
        if reason is not None:
            yield path, reason
            return
        fusion = _try_fusion(module, fuse_module)
        yield path, fusion
        if not isinstance(fusion, str):
            inner = list(fusion.trace.opaque)
        else:
            inner = [name for name, child in module._modules.items() if child is not None]
        for name in inner:
            yield from visit(module.get_submodule(name), f"{path}.{name}" if path else name)

    return visit(model, "")


def _try_fusion(
    module: nn.Module, fuse_module: Callable[[nn.Module, Pattern], _Fusion]
) -> _Fusion | str:
    if is_builtin(module) and module_kind(module) is not nn.Conv2d:
        return "its caller cannot be traced"
    try:
        return fuse_module(module, default_pattern(module))
    except TraceFailed as error:
        return f"tracing failed: {error}"


def image_input(placeholder: fx.Node) -> Image:
    """A tensor argument, taken to be an image; a plan checks that it is one."""
    return fresh_image(placeholder, frozenset({placeholder}))


def plain_reader(modules: dict[str, nn.Module]) -> Reader:
    """A reader to which parameters are nothing special."""
    return Reader(modules, lambda node: None, lambda source: None)


def _written_attributes(graph: fx.Graph) -> set[str]:
    """Parameters and buffers that running the graph may change."""
    attributes = [node for node in graph.nodes if node.op == "get_attr"]
    effects = Effects(graph, plain_reader({}))
    return {str(node.target) for node in attributes if effects.is_written(node)}


def has_foreign_code(graph: fx.Graph) -> bool:
    """Whether a graph calls functions that are not PyTorch's."""
    return not all(map(is_trusted, graph.nodes))


def is_channels_last(value: Any) -> bool:
    """Whether it is a tensor that eager takes for channels_last, and not for contiguous."""
    return (
        isinstance(value, Tensor)
        and value.dim() == 4
        and value.is_contiguous(memory_format=torch.channels_last)
        and not value.is_contiguous()
    )


def contiguous_form(graph: fx.Graph, reader: Reader) -> fx.Graph:
    """A copy of a fused graph that returns and hands on what eager would for contiguous input."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, val_map={}))
    if not chooses_format(copy):
        restore_contiguous(copy, reader, gives_image)
    return copy


class Program:
    """A fused graph, its packed weights, and what its inputs have to be.

    Args:
        result: the fused graph.
        reader: reads the modules that it calls.
        root: what its attributes belong to; not kept.
        staleness: as for ``Packer``.
        autocast: whether it will run under autocast.
        foreign: whether it runs code other than PyTorch's.
        is_parameter: whether an input is a parameter, whose memory format tells nothing.
    """

    def __init__(
        self,
        result: FusedGraph,
        reader: Reader,
        root: nn.Module,
        staleness: Staleness,
        autocast: bool,
        foreign: bool,
        is_parameter: Callable[[fx.Node], bool] = lambda node: False,
    ) -> None:
        placeholders = [node for node in result.graph.nodes if node.op == "placeholder"]
        self._data = [i for i, node in enumerate(placeholders) if not is_parameter(node)]
        self._images = [(placeholders.index(node), recipes) for node, recipes in result.images]
        self._telling_weight = telling_weight(result)
        graph, chains = result.graph, []
        if staleness == "content":
            graph = live_form(graph)
            chains = chain_live_bottlenecks(graph, result.first)
        self._packer = Packer(result.recipes, root, staleness, chains, result.first)
        contiguous = contiguous_form(graph, reader)
        for form in (graph, contiguous):
            guard_heads(form)
        self._channels_last = compile_graph(graph)
        self._contiguous = compile_graph(contiguous)
        self._autocast = autocast
        self._foreign = foreign

    def run(self, root: nn.Module, inputs: Sequence[Any]) -> Any:
        """Calls the graph.

        Args:
            root: what its attributes belong to.
            inputs: a value for each placeholder.

        Returns:
            What the graph returns.

        Raises:
            Unusable: the kernels cannot run with these parameters or inputs.
        """
        for index, _ in self._images:
            if inputs[index].dim() != 4:
                raise Unusable(f"input {index} has {inputs[index].dim()} dimensions")
        images = inputs[self._images[0][0]].shape[0] if self._images else None
        constants = self._packer.constants(root, inputs, images)
        self._check_inputs(inputs, constants)
        function = self._contiguous
        if self._keeps_channels_last(root, inputs):
            function = self._channels_last
        # The user's code may need the kernels of autograd, without which the operators are faster.
        guard = torch.no_grad() if self._foreign else torch._C._AutoDispatchBelowAutograd()
        with guard:
            return function(_scope(root, constants), *inputs)

    def _keeps_channels_last(self, root: nn.Module, inputs: Sequence[Any]) -> bool:
        if any(is_channels_last(inputs[index]) for index in self._data):
            return True
        weight = self._telling_weight
        return weight is not None and is_channels_last(weight.read(root, inputs))

    def _check_inputs(self, inputs: Sequence[Any], constants: Constants) -> None:
        weights = constants.weights
        for index, recipes in self._images:
            x = inputs[index]
            if x.dtype not in DTYPES and recipes:
                raise Unusable(f"there is no kernel for {x.dtype} inputs")
            if recipes:
                check_same_device(x, weights[0])
            if not self._autocast and any(weights[r].dtype != x.dtype for r in recipes):
                raise Unusable(f"weights and a {x.dtype} input differ in dtype")


def _scope(root: nn.Module, constants: Constants) -> Scope:
    def otherwise(name: str) -> Any:
        number = packed_number(name)
        if number is None or number < constants.first:
            return getattr(root, name)
        return constants.pack(number)

    return Scope(constants.kept(), otherwise)


class Plan:
    """A fused module that can be run.

    Args:
        module: the module that was fused; not kept.
        fusion: of the module.
        staleness: as for ``Packer``.
    """

    def __init__(self, module: nn.Module, fusion: Fusion, staleness: Staleness) -> None:
        self.structure = fusion.trace.structure
        self.opaque = list(fusion.trace.opaque)
        self._spec = fusion.trace.out_spec
        self._program = None
        self._foreign = bool(self.opaque) or has_foreign_code(fusion.result.graph)
        self._tensors = fusion.tensors
        if fusion.result.recipes:
            self._program = Program(
                fusion.result, fusion.reader(), module, staleness, fusion.autocast, self._foreign
            )

    @property
    def is_useful(self) -> bool:
        """Whether anything was fused."""
        return self._program is not None

    def may_need_grad(self, module: nn.Module) -> bool:
        """Whether a result may need a gradient although no parameter and no input does."""
        read = (source.read(module, ()) for source in self._tensors)
        return self._foreign or any(t is not None and t.requires_grad for t in read)

    def run(self, module: nn.Module, tensors: Sequence[Tensor]) -> Any:
        """Calls the module that was traced with its tensor arguments, in order.

        Raises:
            Unusable: the kernels cannot run with these parameters or inputs.
        """
        assert self._program is not None
        leaves = self._program.run(module, tensors)
        return leaves[0] if self._spec.is_leaf() else self._spec.unflatten(leaves)


def telling_weight(result: FusedGraph) -> Source | None:
    """A weight whose memory format can be told; eager's outputs follow the weights' format too."""
    for recipe in result.recipes:
        if not isinstance(recipe, Recipe):
            continue
        _, channels, height, width = recipe.weight_shape
        if channels > 1 and height * width > 1:
            return recipe.weight
    return None
