"""``torch.compile(model, backend="fastres")``: the same rewriting, of the graphs that Dynamo finds.

Dynamo hands over graphs in which parameters and buffers are inputs. They are packed when they
change, as behind ``accelerate``. A graph that needs gradients runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import fx, nn

from . import _library
from .fx.effects import Effects
from .fx.names import op_name
from .fx.patterns import Reader
from .fx.shapes import Image, image_of_example
from .fx.sources import InputSource, Source
from .rewrite.fuse import fuse
from .rewrite.plan import Program, has_foreign_code, plain_reader
from .weights.packing import Staleness
from .weights.recipes import Unusable

# Graphs with these switch something on or off for the nodes between them, which fusing would move.
_SWITCHES = {"_enter_autocast", "_exit_autocast", "_set_grad_enabled"}


def fastres_backend(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compiles one graph of Dynamo's; for ``torch.compile(..., backend="fastres")``.

    Args:
        graph_module: the graph.
        example_inputs: an example, or a symbol, for each input.
        options: "staleness" and "fuse_blocks", as for ``fastres.accelerate``.
        mode: accepted and ignored, there is only one.

    Returns:
        A function of the inputs that returns what the graph returns.

    Raises:
        ValueError: an unknown option.
    """
    staleness, blocks = _options(options)
    if _needs_grad(example_inputs) or any(
        op_name(node) in _SWITCHES for node in graph_module.graph.nodes
    ):
        return graph_module.forward
    program = _program(graph_module, example_inputs, staleness, blocks)
    if program is None:
        return graph_module.forward

    def run(*inputs: Any) -> Any:
        devices = {value.device.type for value in inputs if isinstance(value, torch.Tensor)}
        if any(_library.leaves_alone(device, training=False) for device in devices):
            return graph_module.forward(*inputs)
        try:
            return program.run(graph_module, inputs)
        except Unusable:
            return graph_module.forward(*inputs)

    return run


def _options(options: Mapping[str, Any] | None) -> tuple[Staleness, bool]:
    given = {"staleness": "content", "fuse_blocks": True, **(options or {})}
    unknown = given.keys() - {"staleness", "fuse_blocks"}
    if unknown:
        raise ValueError(
            f"backend fastres: unknown options {sorted(unknown)}, expected staleness, fuse_blocks"
        )
    if given["staleness"] not in get_args(Staleness):
        raise ValueError(
            f"backend fastres: staleness must be one of {', '.join(get_args(Staleness))}, "
            f"got {given['staleness']!r}"
        )
    return given["staleness"], bool(given["fuse_blocks"])


def _needs_grad(inputs: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(value, torch.Tensor) and value.requires_grad for value in inputs
    )


def _program(
    graph_module: fx.GraphModule, examples: Sequence[Any], staleness: Staleness, blocks: bool
) -> Program | None:
    graph = fx.Graph()  # a copy: the original is what runs where the program cannot
    graph.output(graph.graph_copy(graph_module.graph, val_map={}))
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    examples_of = dict(zip(placeholders, examples, strict=True))
    effects = Effects(graph, plain_reader({}))
    # What the graph writes to is not the same where it is read as when it is called.
    positions = {node: i for i, node in enumerate(placeholders) if not effects.is_written(node)}

    def is_parameter(node: fx.Node) -> bool:
        return _is_parameter(node, examples_of[node])

    def source(node: Any) -> Source | None:
        if node in positions and is_parameter(node):
            return InputSource(positions[node])
        return None

    def image(node: fx.Node) -> Image | None:
        example = examples_of[node]
        if not isinstance(example, torch.Tensor) or example.dim() != 4:
            return None
        return image_of_example(node, example)

    modules: dict[str, nn.Module] = {}
    reader = Reader(modules, source, lambda found: found.read(None, examples))
    devices = [example.device.type for example in examples if isinstance(example, torch.Tensor)]
    autocast = torch.is_autocast_enabled(devices[0] if devices else "cpu")
    result = fuse(graph, reader, image, autocast, blocks)
    if not result.recipes:
        return None
    foreign = has_foreign_code(graph) or any(node.op == "call_module" for node in graph.nodes)
    return Program(result, reader, graph_module, staleness, autocast, foreign, is_parameter)


def _is_parameter(node: fx.Node, example: Any) -> bool:
    """Whether an input is a module's, not something that is another at each call."""
    names = ("_parameters_", "_buffers_")
    return isinstance(example, nn.Parameter) or any(name in node.name for name in names)
