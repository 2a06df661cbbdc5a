"""Reads FX nodes as convolutions, normalisations, activations and additions.

One reading for the module form (``call_module`` of ``nn.Conv2d``), the functional form
(``F.conv2d``, ``x.relu_()``, ``+=``), and ATen's (what ``torch.export`` hands out).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from ..ops.arguments import pair, resolve_padding
from .expressions import Expressions, channels_of
from .readings import Act, Add, Affine, Conv, Norm, Pad, Reading, Same, Unfit
from .sources import AttributeSource, Source
from .structure import original_class

aten = torch.ops.aten


class _NotConstant(Exception):
    """An argument that has to be known is computed in the graph."""


def _constant(value: Any) -> Any:
    if isinstance(value, fx.Node) or (
        isinstance(value, (tuple, list)) and any(isinstance(v, fx.Node) for v in value)
    ):
        raise _NotConstant
    return value


def is_constant(values: Sequence[Any]) -> bool:
    """Whether all of these arguments are known, none being computed in the graph."""
    return not any(isinstance(value, fx.Node) for value in values)


def bind(node: fx.Node, names: str, **defaults: Any) -> dict[str, Any]:
    """A call's arguments by name, where ``names`` are those of its positional ones, in order."""
    bound = dict(defaults)
    bound.update(zip(names.split(), node.args, strict=False))
    renamed = {"self": "input"}
    bound.update({renamed.get(name, name): value for name, value in node.kwargs.items()})
    return bound


class Reader:
    """Reads the nodes of one graph.

    Args:
        modules: the modules that ``call_module`` nodes name, but for opaque ones.
        source: where the tensor of a node comes from, or None if the graph computes it.
        tensor_of: the tensor that a source has now.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        source: Callable[[fx.Node], Source | None],
        tensor_of: Callable[[Source], Tensor | None],
    ) -> None:
        self._modules = modules
        self._source = source
        self._tensor_of = tensor_of
        self._expressions = Expressions(source, tensor_of)

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, if it is one that may be looked into."""
        return self._modules.get(str(node.target)) if node.op == "call_module" else None

    def source(self, node: Any) -> Source | None:
        """Where the tensor of a node comes from, or None if the graph computes it."""
        return self._source(node)

    def read(self, node: fx.Node) -> Reading | None:
        """What a node is, or None if it is something else."""
        try:
            if node.op == "call_module":
                module = self.module(node)
                return None if module is None else self._read_module(node, module)
            if node.op in ("call_function", "call_method"):
                return self._read_function(node)
        except _NotConstant:
            return None
        return None

    # -- modules --

    def _read_module(self, node: fx.Node, module: nn.Module) -> Reading | None:
        kind = module_kind(module)
        if kind is None or len(node.all_input_nodes) != 1:
            return None
        (x,) = node.all_input_nodes
        if node.args != (x,) and node.kwargs != {"input": x}:
            return None
        if kind is nn.Identity or (kind in _DROPOUTS and not module.training):
            return Same(x)
        if kind in NORM_MODULES:
            return self._norm_module(x, module)
        if kind is nn.Conv2d:
            return self._conv_module(x, module)
        if kind is nn.ZeroPad2d:
            return _pad(x, module.padding)
        if issubclass(kind, nn.modules.conv._ConvNd):
            return Unfit(f"{kind.__name__} has no kernel")
        return _act_module(x, module, kind)

    def _conv_module(self, x: fx.Node, module: Any) -> Reading:
        if module.padding_mode != "zeros":
            return Unfit(f"padding_mode={module.padding_mode!r}")
        # The bias may be None now and a parameter later.
        return self._conv(
            x,
            AttributeSource(module, "weight"),
            AttributeSource(module, "bias"),
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
        )

    def _norm_module(self, x: fx.Node, module: Any) -> Reading:
        if module.running_mean is None or module.running_var is None:
            return Unfit("its BatchNorm keeps no running statistics", is_norm=True)
        if module.training:
            return Unfit("its BatchNorm is in training mode", is_norm=True)
        return Norm(
            x,
            AttributeSource(module, "running_mean"),
            AttributeSource(module, "running_var"),
            AttributeSource(module, "weight"),
            AttributeSource(module, "bias"),
            eps=module.eps,
            checks_rank=module_kind(module) is nn.BatchNorm2d,
        )

    # -- functions and methods --

    def _read_function(self, node: fx.Node) -> Reading | None:
        target = node.target
        if target in _CONVS:
            return self._conv_function(node)
        if target in NORM_FUNCTIONS:
            return self._norm_function(node)
        if target in _ACTS:
            return _act_function(node)
        if target is F.pad:
            return _pad_function(node)
        if target in _ADDS or target in _MULS:
            return self._affine(node) or _add_function(node)
        if target in (F.dropout, F.dropout2d):
            arguments = bind(node, "input p training inplace", training=True)
            return Same(arguments["input"]) if _constant(arguments["training"]) is False else None
        return None

    def _affine(self, node: fx.Node) -> Affine | None:
        arguments = bind(node, "input other", alpha=1, out=None)
        if _constant(arguments["alpha"]) != 1 or arguments["out"] is not None:
            return None
        for x, other in (("input", "other"), ("other", "input")):
            factor = self._expressions.find(arguments[other])
            value = arguments[x]
            if factor is not None and isinstance(value, fx.Node):
                if self._expressions.find(value) is not None:
                    return None
                channels = channels_of(factor)
                if channels is None:
                    return None
                if node.target in _MULS:
                    return Affine(value, factor, 0.0, channels)
                return Affine(value, 1.0, factor, channels)
        return None

    def _conv_function(self, node: fx.Node) -> Reading:
        names = "input weight bias stride padding dilation groups"
        arguments = bind(node, names, bias=None, stride=1, padding=0, dilation=1, groups=1)
        weight, bias = arguments["weight"], arguments["bias"]
        weight_source = self._source(weight)
        bias_source = None if bias is None else self._source(bias)
        if weight_source is None or (bias is not None and bias_source is None):
            return Unfit("its weight is computed in forward")
        geometry = [_constant(arguments[n]) for n in ("stride", "padding", "dilation", "groups")]
        return self._conv(arguments["input"], weight_source, bias_source, *geometry)

    def _conv(
        self,
        x: fx.Node,
        weight: Source,
        bias: Source | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
    ) -> Reading:
        tensor = self._tensor_of(weight)
        if tensor is None or is_lazy(tensor):
            return Unfit("its weight is not there yet")
        shape = tuple(tensor.shape)
        if len(shape) != 4:
            return Unfit(f"its weight has shape {list(shape)}")
        kernel_size = shape[2:]
        dilation = _pair("dilation", dilation)
        if not isinstance(padding, str):
            padding = _pair("padding", padding)
        return Conv(
            x,
            weight,
            bias,
            shape,
            _pair("stride", stride),
            resolve_padding(padding, kernel_size, dilation),
            dilation,
            groups,
        )

    def _norm_function(self, node: fx.Node) -> Reading:
        arguments = bind(node, NORM_FUNCTIONS[node.target], weight=None, bias=None, eps=1e-5)
        if _constant(arguments.get("training", False)):
            return Unfit("its BatchNorm is in training mode", is_norm=True)
        sources = {}
        for name in ("running_mean", "running_var", "weight", "bias"):
            value = arguments[name]
            sources[name] = None if value is None else self._source(value)
            if value is not None and sources[name] is None:
                return Unfit("its BatchNorm's parameters are computed in forward", is_norm=True)
        mean, var = sources["running_mean"], sources["running_var"]
        if mean is None or var is None:
            return Unfit("its BatchNorm keeps no running statistics", is_norm=True)
        return Norm(
            arguments["input"],
            mean,
            var,
            sources["weight"],
            sources["bias"],
            _constant(arguments["eps"]),
            checks_rank=False,
        )


def _pair(name: str, value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return pair(name, values[0] if len(values) == 1 else values)


# ---- modules -------------------------------------------------------------------------------------

_DROPOUTS = (nn.Dropout, nn.Dropout2d)
NORM_MODULES = (nn.BatchNorm2d, nn.SyncBatchNorm)
_KNOWN = (
    nn.Conv2d, nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    *NORM_MODULES, *_DROPOUTS, nn.Identity, nn.ReLU6, nn.ReLU, nn.Hardtanh, nn.SiLU, nn.LeakyReLU,
    nn.ZeroPad2d,
)  # fmt: skip
_BEHAVIOUR = ("forward", "_conv_forward", "_check_input_dim")


def module_kind(module: nn.Module) -> type[nn.Module] | None:
    """Which of PyTorch's own layers a module behaves as; None if it is none, or differs."""
    cls = original_class(module)
    for known in _KNOWN:
        if issubclass(cls, known):
            same = all(getattr(cls, n, None) is getattr(known, n, None) for n in _BEHAVIOUR)
            return known if same else None
    return None


def _act_module(x: fx.Node, module: Any, kind: type[nn.Module]) -> Act | None:
    slope = 0.01
    if kind is nn.ReLU:
        name = "relu"
    elif kind is nn.SiLU:
        name = "silu"
    elif kind is nn.LeakyReLU:
        name, slope = "leaky_relu", float(module.negative_slope)
    elif kind in (nn.ReLU6, nn.Hardtanh) and (module.min_val, module.max_val) == (0, 6):
        name = "relu6"
    else:
        return None
    return Act(x, name, slope, module.inplace)


# ---- functions -----------------------------------------------------------------------------------

_CONVS = {torch.conv2d, F.conv2d, aten.conv2d.default, aten.conv2d.padding}

_ATEN_NORM = "input weight bias running_mean running_var training momentum eps cudnn_enabled"
NORM_FUNCTIONS = {
    F.batch_norm: "input running_mean running_var weight bias training momentum eps",
    torch.batch_norm: _ATEN_NORM,
    aten.batch_norm.default: _ATEN_NORM,
}

# Function or method -> (activation, names of its arguments, whether it works in place).
_ACTS: dict[Any, tuple[str, str, bool]] = {
    F.relu: ("relu", "input inplace", False),
    torch.relu: ("relu", "input", False),
    torch.relu_: ("relu", "input", True),
    F.relu_: ("relu", "input", True),
    "relu": ("relu", "input", False),
    "relu_": ("relu", "input", True),
    F.relu6: ("relu6", "input inplace", False),
    F.hardtanh: ("relu6", "input min_val max_val inplace", False),
    F.hardtanh_: ("relu6", "input min_val max_val", True),
    F.silu: ("silu", "input inplace", False),
    F.leaky_relu: ("leaky_relu", "input negative_slope inplace", False),
    F.leaky_relu_: ("leaky_relu", "input negative_slope", True),
    aten.relu.default: ("relu", "input", False),
    aten.relu_.default: ("relu", "input", True),
    aten.hardtanh.default: ("relu6", "input min_val max_val", False),
    aten.hardtanh_.default: ("relu6", "input min_val max_val", True),
    aten.silu.default: ("silu", "input", False),
    aten.silu_.default: ("silu", "input", True),
    aten.leaky_relu.default: ("leaky_relu", "input negative_slope", False),
    aten.leaky_relu_.default: ("leaky_relu", "input negative_slope", True),
}

_HARDTANH = {F.hardtanh, F.hardtanh_, aten.hardtanh.default, aten.hardtanh_.default}


def _act_function(node: fx.Node) -> Act | None:
    name, names, inplace = _ACTS[node.target]
    defaults = {"inplace": inplace, "negative_slope": 0.01, "min_val": -1.0, "max_val": 1.0}
    arguments = bind(node, names, **defaults)
    limits = (_constant(arguments["min_val"]), _constant(arguments["max_val"]))
    if node.target in _HARDTANH and limits != (0, 6):
        return None
    x, slope = arguments["input"], float(_constant(arguments["negative_slope"]))
    return Act(x, name, slope, bool(_constant(arguments["inplace"])))


def _pad_function(node: fx.Node) -> Pad | None:
    arguments = bind(node, "input pad mode value", mode="constant", value=None)
    if _constant(arguments["mode"]) != "constant" or _constant(arguments["value"]) not in (None, 0):
        return None
    return _pad(arguments["input"], _constant(arguments["pad"]))


def _pad(x: fx.Node, sides: Any) -> Pad | None:
    if len(sides) != 4 or min(sides) < 0:
        return None
    left, right, top, bottom = sides
    return Pad(x, (top, bottom, left, right))


# Function or method -> whether it works in place.
_ADDS: dict[Any, bool] = {
    operator.add: False,
    operator.iadd: True,
    torch.add: False,
    "add": False,
    "add_": True,
    aten.add.Tensor: False,
    aten.add_.Tensor: True,
}


_MULS = {operator.mul, operator.imul, torch.mul, "mul", "mul_", aten.mul.Tensor, aten.mul_.Tensor}


def _add_function(node: fx.Node) -> Add | None:
    if node.target not in _ADDS:
        return None
    arguments = bind(node, "input other", alpha=1, out=None)
    left, right = arguments["input"], arguments["other"]
    if not (isinstance(left, fx.Node) and isinstance(right, fx.Node)):
        return None
    if _constant(arguments["alpha"]) != 1 or arguments["out"] is not None:
        return None
    return Add(left, right, _ADDS[node.target])
