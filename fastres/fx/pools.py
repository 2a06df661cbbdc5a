"""Reads FX nodes as max-poolings."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F

from .patterns import Reader, bind, is_constant
from .structure import original_class

_NAMES = "input kernel_size stride padding dilation ceil_mode return_indices"
_FUNCTIONS = {F.max_pool2d, torch.max_pool2d}


class MaxPoolWindow(NamedTuple):
    """The arguments of ``F.max_pool2d`` after the input."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool

    @property
    def is_plain(self) -> bool:
        """Whether it is one of fastres's operators'."""
        return self.dilation == (1, 1) and not self.ceil_mode


def read_max_pool(node: fx.Node, reader: Reader) -> tuple[fx.Node, MaxPoolWindow] | None:
    """The input and the window of a max-pooling that returns no indices; None if it is none."""
    if node.op == "call_module":
        module: Any = reader.module(node)
        if module is None or original_class(module) is not nn.MaxPool2d:
            return None
        arguments = bind(node, "input")
        names = _NAMES.split()[1:]
        arguments.update({name: getattr(module, name) for name in names})
    elif node.op == "call_function" and node.target in _FUNCTIONS:
        defaults = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
        arguments = bind(node, _NAMES, **defaults, return_indices=False)
    else:
        return None
    x = arguments.pop("input", None)
    sizes = [arguments[name] for name in ("kernel_size", "stride", "padding", "dilation")]
    sizes[1] = sizes[0] if sizes[1] in (None, [], ()) else sizes[1]
    pairs = [tuple(v) if isinstance(v, (tuple, list)) else (v, v) for v in sizes]
    flags = [arguments["ceil_mode"], arguments["return_indices"]]
    known = is_constant([v for p in pairs for v in p] + flags) and all(len(p) == 2 for p in pairs)
    if not isinstance(x, fx.Node) or not known or flags[1]:
        return None
    kernel, stride, padding, dilation = pairs
    return x, MaxPoolWindow(kernel, stride, padding, dilation, bool(flags[0]))
