"""``unpack(frozen)``: a frozen graph on PyTorch's own operators, for who knows no others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from . import reference
from .rewrite.chaining import part_chains
from .weights.packing import live_names, packed_number


def unpack(frozen: fx.GraphModule) -> fx.GraphModule:
    """Puts a frozen module back on PyTorch's own operators, for ONNX and where there is no fastres.

    BatchNorms stay folded. Weights that were packed for direct convolution come out as they were
    folded, bit for bit. Those that were packed for Winograd's are recovered from their transform,
    which rounded them; freeze under ``set_numerics("strict")`` to have none of these.

    Args:
        frozen: what ``freeze`` returned, on any machine.

    Returns:
        A module with the same call, which shares nothing with ``frozen`` and needs torch alone.
        Its outputs have the memory formats that PyTorch gives them.

    Raises:
        TypeError: ``frozen`` is not a GraphModule.
        ValueError: it has operators that ``freeze`` does not use.
    """
    if not isinstance(frozen, fx.GraphModule):
        raise TypeError(f"unpack: frozen must be a GraphModule, got {type(frozen).__name__}")
    unpacked = copy.deepcopy(frozen)
    part_chains(unpacked)
    return _Unpacking(unpacked).transform().eval()


class _Unpacking(fx.Transformer):
    """Makes the graph again, on other operators; ``module`` gets the unpacked weights."""

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        number = packed_number(target)
        if number is not None:
            packed = self.module.get_buffer(target)
            target, *_ = live_names(number)
            self.module.register_buffer(target, reference.unpack_conv_weight(packed))
        return super().get_attr(target, args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(target, torch._ops.OpOverloadPacket) and str(target).startswith("fastres."):
            if target not in _STANDARD:
                raise ValueError(f"unpack: {target} is not one of freeze's operators")
            return _STANDARD[target](*args, **kwargs)
        return super().call_function(target, args, kwargs)


# What arithmetic is float32 in the operators, whatever the dtype of x, is float32 here.


def _conv_bn_act(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    kernel_size: list[int],
    *geometry_and_act: Any,
) -> Tensor:
    y = reference.unpacked_conv_bn_act(x.float(), weight, shift, residual, *geometry_and_act)
    return y.type_as(x)


def _conv_max_pool(x: Tensor, weight: Tensor, shift: Tensor, *arguments: Any) -> Tensor:
    *conv, size, stride, padding = arguments
    return torch.max_pool2d(_conv_bn_act(x, weight, shift, None, *conv), size, stride, padding)


def _grouped_bottleneck(x: Tensor, *arguments: Any) -> Tensor:
    return reference.unpacked_bottleneck(x.float(), *arguments).type_as(x)


def _affine_act(
    y: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, *shortcut_and_act: Any
) -> Tensor:
    *_, act, act_slope = shortcut_and_act  # a BatchNorm that stands alone has no shortcut
    out = reference.affine(y.float(), mean, scale, bias)
    return reference.apply_act(out, act, act_slope).type_as(y)


def _avg_pool_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    averages = torch.flatten(F.adaptive_avg_pool2d(x.float(), 1), 1)
    y = F.linear(averages, weight.float(), None if bias is None else bias.float())
    return y.type_as(x)


_STANDARD: dict[Any, Callable[..., Any]] = {
    torch.ops.fastres.conv_bn_act: _conv_bn_act,
    torch.ops.fastres.conv_max_pool: _conv_max_pool,
    torch.ops.fastres.grouped_bottleneck: _grouped_bottleneck,
    torch.ops.fastres.affine_add_act: _affine_act,
    torch.ops.fastres.avg_pool_linear: _avg_pool_linear,
    torch.ops.fastres.max_pool: torch.max_pool2d,
}
