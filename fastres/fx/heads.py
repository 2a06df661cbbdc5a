"""Reads FX nodes as the head of a network: average pooling, flattening, a linear layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from .patterns import Reader, bind
from .readings import Same
from .sources import PLAIN_TYPES
from .structure import original_class

_PIXELS = {(2, 3), (3, 2), (-2, -1), (-1, -2)}


class Head(NamedTuple):
    """``linear(x.mean((2, 3)), weight, bias)``, of a module's own weight and bias."""

    x: fx.Node
    nodes: list[fx.Node]
    """In the graph's order; the first one reads x, the last one calls the module."""


def read_head(node: fx.Node, reader: Reader) -> Head | None:
    """The head whose linear layer this is; None if it is none, or has no bias.

    Between pooling and linear layer nobody else may read anything.
    """
    value = _read_linear(node, reader)
    nodes = [node]
    keeps_sizes = True
    while isinstance(value, fx.Node) and len(value.users) == 1:
        nodes.insert(0, value)
        pool = _read_pool(value, reader, keeps_sizes=keeps_sizes)
        if pool is not None:
            return Head(pool, nodes)
        reading = reader.read(value)
        if isinstance(reading, Same):
            value = reading.x
            continue
        value = _read_flatten(value, reader)
        keeps_sizes = False
    return None


def _read_linear(node: fx.Node, reader: Reader) -> Any:
    """What a plain linear layer with a bias reads."""
    module: Any = reader.module(node)
    if module is None or original_class(module) is not nn.Linear:
        return None
    if not suits_linear(module.weight, module.bias):
        return None
    return bind(node, "input").get("input")


def suits_linear(weight: Any, bias: Any) -> bool:
    """Whether these are parameters that ``avg_pool_linear`` takes, but for their dtypes."""
    if bias is None or not PLAIN_TYPES.issuperset((type(weight), type(bias))) or is_lazy(weight):
        return False
    return bool(bias.shape == weight.shape[:1])


def _read_flatten(node: fx.Node, reader: Reader) -> Any:
    """What a node flattens from dimension 1 on; None if it does something else."""
    module: Any = reader.module(node)
    if module is not None:
        plain = original_class(module) is nn.Flatten
        if not plain or (module.start_dim, module.end_dim) != (1, -1):
            return None
        return bind(node, "input").get("input")
    if not _calls(node, torch.flatten, "flatten"):
        return None
    arguments = bind(node, "input start_dim end_dim", start_dim=0, end_dim=-1)
    known = (arguments["start_dim"], arguments["end_dim"]) in ((1, -1), (1, 3))
    return arguments["input"] if known else None


def _read_pool(node: fx.Node, reader: Reader, *, keeps_sizes: bool) -> fx.Node | None:
    """What a node averages over all pixels.

    Args:
        node: perhaps such a pooling.
        reader: reads it.
        keeps_sizes: whether nothing flattens its result, so that it has to have two dimensions.
    """
    module: Any = reader.module(node)
    x: Any = None
    flat = False
    if module is not None:
        if original_class(module) is nn.AdaptiveAvgPool2d and _is_one(module.output_size):
            x = bind(node, "input").get("input")
    elif _calls(node, F.adaptive_avg_pool2d):
        arguments = bind(node, "input output_size")
        if _is_one(arguments.get("output_size")):
            x = arguments["input"]
    elif _calls(node, torch.mean, "mean"):
        arguments = bind(node, "input dim keepdim", dim=None, keepdim=False)
        dims = arguments["dim"]
        plain = not {"dtype", "out"} & arguments.keys()
        if plain and isinstance(dims, (tuple, list)) and tuple(dims) in _PIXELS:
            x, flat = arguments["input"], arguments["keepdim"] is False
    return x if isinstance(x, fx.Node) and flat == keeps_sizes else None


def _calls(node: fx.Node, function: Any, method: str | None = None) -> bool:
    if node.op == "call_function":
        return node.target is function
    return node.op == "call_method" and node.target == method


def _is_one(size: Any) -> bool:
    return size == 1 or (isinstance(size, (tuple, list)) and tuple(size) == (1, 1))
