"""``freeze(model)``: a graph of fused operators and constants, for deployment."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from .fx.names import FUSED
from .fx.patterns import Reader
from .fx.readings import Norm
from .fx.tracing import Pattern, default_pattern
from .fx.watching import TraceFailed
from .rewrite.chaining import chain_bottlenecks
from .rewrite.plan import Fusion, contiguous_form, is_channels_last, telling_weight
from .weights.packing import Packer
from .weights.recipes import Unusable

#: What a call may be given as an example of: one tensor, or the positional arguments.
Example = Tensor | tuple[Any, ...]


def freeze(
    model: nn.Module, example_input: Example | None = None, *, fuse_blocks: bool = True
) -> fx.GraphModule:
    """Packs a model for inference: a graph of ``torch.ops.fastres`` calls and constants.

    The result shares nothing with the model and does not follow its changes. It is in eval mode
    for good: ``train()`` has no effect on BatchNorm and dropout. It can be scripted, traced,
    exported, pickled and copied; to load it elsewhere, ``import fastres`` first (in C++ programs,
    load ``libfastres``). Its dtype is the model's: convert the model, not the result. ``unpack``
    makes standard operators of it, for ONNX.

    Args:
        model: a module in eval mode that can be traced as a whole, accelerated or not.
        example_input: a tensor, or a tuple of the positional arguments, that tells which arguments
            are tensors (the others become constants) and, by its memory format, that of the
            outputs. By default the arguments without default are tensors, and outputs are
            channels_last if the model's weights are.
        fuse_blocks: whether to run whole bottlenecks as one operator.

    Returns:
        A module with the model's call, limited to tensor arguments and to input of any size. Lists,
        tuples and dicts of outputs stay such; other containers become these.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``model`` is in training mode, cannot be traced as a whole, or has parameters of
            a dtype or on a device without kernels.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"freeze: model must be an nn.Module, got {type(model).__name__}")
    if model.training:
        raise ValueError("freeze: model is in training mode, expected model.eval()")
    arguments = (example_input,) if isinstance(example_input, Tensor) else example_input
    try:
        pattern = default_pattern(model) if arguments is None else Pattern.of(arguments, {})
        if pattern is None:
            raise ValueError("freeze: example_input must hold tensors and plain constants only")
        fusion = Fusion(model, pattern, autocast=False, blocks=fuse_blocks)
        result = fusion.result
        packer = Packer(result.recipes, model, "content", first=result.first)
        constants = packer.constants(model).all() if result.recipes else {}
    except TraceFailed as error:
        raise ValueError(
            f"freeze: model cannot be traced as a whole ({error}); freeze the part that can"
        ) from error
    except Unusable as error:
        raise ValueError(f"freeze: {error}") from error
    graph = result.graph
    if not _gives_channels_last(fusion, model, arguments or ()):
        graph = contiguous_form(graph, fusion.reader())
    chain_bottlenecks(graph, constants, result.first)
    return _module(model, fusion, graph, constants)


def _gives_channels_last(fusion: Fusion, model: nn.Module, arguments: Sequence[Any]) -> bool:
    """Whether eager's outputs for these arguments are channels_last."""
    if any(map(is_channels_last, arguments)):
        return True
    weight = telling_weight(fusion.result)
    return weight is not None and is_channels_last(weight.read(model, ()))


def _module(
    model: nn.Module, fusion: Fusion, graph: fx.Graph, constants: dict[str, Tensor]
) -> fx.GraphModule:
    _unflatten_output(graph, fusion.trace.out_spec)
    attributes: dict[str, Any] = dict(constants)
    _fix_norms(graph, fusion.reader(), attributes, model)
    for node in graph.nodes:
        if node.op == "call_module":
            attributes[node.target] = _copy_of(model.get_submodule(node.target))
        elif node.op == "get_attr" and node.target not in attributes:
            path, _, name = node.target.rpartition(".")
            attributes[node.target] = getattr(model.get_submodule(path), name).detach().clone()
        if FUSED in node.meta:  # TorchScript knows no overloads by name
            node.target = getattr(torch.ops.fastres, node.meta[FUSED])
    frozen = fx.GraphModule(attributes, graph, type(model).__name__)
    for node in frozen.graph.nodes:
        node.meta.clear()  # it names the user's classes, which loading must not need
    return frozen.eval()


def _copy_of(module: nn.Module) -> nn.Module:
    duplicate = copy.deepcopy(module)
    duplicate.eval()  # whose result a module of the user's may have forgotten to return
    duplicate.requires_grad_(False)
    return duplicate


def _unflatten_output(graph: fx.Graph, spec: pytree.TreeSpec) -> None:
    """Gives the graph's output, a list of leaves, the structure that the model's has."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    leaves = list(output.args[0])
    structured = leaves[0] if spec.is_leaf() else spec.unflatten(leaves)
    output.args = (_plain_containers(structured),)
    output.type = None  # the tracer's: of the list of leaves


def _plain_containers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain_containers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain_containers(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def _fix_norms(
    graph: fx.Graph, reader: Reader, attributes: dict[str, Any], model: nn.Module
) -> None:
    """Makes functions of the BatchNorms that were not folded, so that train() cannot reach them."""
    for node in list(graph.nodes):
        norm = reader.read(node)
        if node.op != "call_module" or not isinstance(norm, Norm):
            continue
        with graph.inserting_before(node):
            arguments: list[Any] = [norm.x]
            for name, source in (
                ("running_mean", norm.mean),
                ("running_var", norm.var),
                ("weight", norm.weight),
                ("bias", norm.bias),
            ):
                tensor = None if source is None else source.read(model, ())
                path = f"{node.target}.{name}"
                arguments.append(None if tensor is None else graph.create_node("get_attr", path))
                if tensor is not None:
                    attributes[path] = tensor.detach().clone()
            function = graph.call_function(F.batch_norm, (*arguments, False, 0.0, norm.eps))
        node.replace_all_uses_with(function)
        graph.erase_node(node)
