"""What a node does, as far as the name of its function tells."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

#: Key in ``node.meta`` of the nodes that call fastres operators, and the operator's name there.
FUSED = "fastres"

_TRUSTED = ("torch", "_operator", "math", "builtins")

_INPLACE_OPERATORS = {
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv,
    operator.imod, operator.ipow, operator.iand, operator.ior, operator.ixor, operator.setitem,
    operator.ilshift, operator.irshift, operator.imatmul, operator.iconcat,
}  # fmt: skip

_INPLACE_METHODS = {f"__{function.__name__}__" for function in _INPLACE_OPERATORS}

# These are closures that all have the same name.
_DISPATCHERS = {F.max_pool2d: "max_pool2d", F.adaptive_max_pool2d: "adaptive_max_pool2d"}


def gives_image(node: fx.Node) -> bool:
    """Whether it calls an operator of fastres whose output is channels_last."""
    return FUSED in node.meta and node.meta[FUSED] != "avg_pool_linear"


def op_name(node: fx.Node) -> str:
    """The operation's bare name: "relu" for F.relu, torch.relu and x.relu()."""
    if node.target in _DISPATCHERS:
        return _DISPATCHERS[node.target]
    if isinstance(node.target, str):
        return node.target.rpartition(".")[2]
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.rpartition("::")[2]
    return getattr(node.target, "__name__", "")


def is_trusted(node: fx.Node) -> bool:
    """Whether a function is PyTorch's or Python's: it writes to what its name says, if at all."""
    if node.op != "call_function":
        return True
    if isinstance(node.target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return True
    module = getattr(node.target, "__module__", None) or "torch"
    return module.split(".")[0] in _TRUSTED


def is_inplace(node: fx.Node) -> bool:
    """Whether a function or method of PyTorch's writes to its first argument."""
    name = op_name(node)
    if node.op == "call_method" and name in _INPLACE_METHODS:
        return True
    in_name = name.endswith("_") and not name.endswith("__")
    return in_name or node.target in _INPLACE_OPERATORS or _inplace_argument(node)


_INPLACE_POSITIONS: dict[Callable[..., Any], int] = {
    F.relu: 1, F.relu6: 1, F.silu: 1, F.mish: 1, F.hardswish: 1, F.hardsigmoid: 1, F.elu: 2,
    F.leaky_relu: 2, F.celu: 2, F.selu: 1, F.hardtanh: 3, F.threshold: 3, F.rrelu: 4,
    F.dropout: 3, F.dropout2d: 3, F.dropout3d: 3, F.dropout1d: 3, F.alpha_dropout: 3,
    F.feature_alpha_dropout: 3,
}  # fmt: skip


def _inplace_argument(node: fx.Node) -> bool:
    position = _INPLACE_POSITIONS.get(node.target)  # type: ignore[arg-type]
    given = node.args[position] if position is not None and len(node.args) > position else False
    return bool(node.kwargs.get("inplace", given))


def reads_only_metadata(node: fx.Node) -> bool:
    """Whether a node asks for a tensor's shape, dtype or rank, not for its values."""
    if node.op == "call_method":
        return node.target in {"size", "dim", "ndimension", "numel", "is_contiguous"}
    names = {"shape", "ndim", "dtype", "device"}
    return node.target is getattr and len(node.args) == 2 and node.args[1] in names
