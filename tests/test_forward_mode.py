"""Forward-mode differentiation, which the kernels do not have, raises: no tangent reads as zero."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nets import conv_bn
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

import fastres
from fastres import ops

WEIGHT = torch.randn(8, 8, 3, 3)
POINT = torch.randn(8, 8, 1, 1)
VECTOR = torch.rand(8)
POOL = {"pool_size": 2, "pool_stride": 2}


def packed(weight: Tensor) -> Tensor:
    return ops.pack_conv_weight(weight)


def block(x: Tensor) -> Tensor:
    weights = (packed(POINT), VECTOR, packed(WEIGHT), VECTOR, packed(POINT), VECTOR)
    return ops.grouped_bottleneck(x, *weights)


def live_block(x: Tensor) -> Tensor:
    layers = (weight for conv in (POINT, WEIGHT, POINT) for weight in (conv, VECTOR, VECTOR))
    return ops.live_bottleneck(x, *layers)


OPERATORS: dict[str, Callable[[Tensor], object]] = {
    "conv_bn_act": lambda x: ops.conv_bn_act(x, packed(WEIGHT), kernel_size=3),
    "conv_max_pool": lambda x: ops.conv_max_pool(x, packed(WEIGHT), VECTOR, kernel_size=3, **POOL),
    "max_pool": lambda x: ops.max_pool(x, 2),
    "grouped_bottleneck": block,
    "avg_pool_linear": lambda x: ops.avg_pool_linear(x, torch.randn(5, 8), torch.randn(5)),
    "live_conv_bn_act": lambda x: ops.live_conv_bn_act(x, WEIGHT),
    "live_conv_max_pool": lambda x: ops.live_conv_max_pool(x, WEIGHT, VECTOR, VECTOR, **POOL),
    "live_bottleneck": live_block,
    "live_bottleneck_chain": lambda x: ops.live_bottleneck_chain(
        x, [POINT, WEIGHT, POINT], torch.rand(24), torch.rand(24), convs=[3]
    ),
    "conv_stats": lambda x: ops.conv_stats(x, WEIGHT),
    "affine_add_act": lambda x: ops.affine_add_act(x, VECTOR, VECTOR, VECTOR),
}


@pytest.mark.parametrize("op", OPERATORS)
def test_an_operator_refuses_tangents(op):
    x = torch.randn(2, 8, 6, 6)
    function = OPERATORS[op]
    function(x)
    with pytest.raises(NotImplementedError, match=f"^{op}: an input has a tangent"):
        torch.func.jvp(function, (x,), (torch.ones_like(x),))
    with forward_ad.dual_level():
        function(x)  # no tangent, no error
        with pytest.raises(NotImplementedError, match="forward-mode"):
            function(forward_ad.make_dual(x, torch.ones_like(x)))


def test_a_frozen_model_refuses_tangents():
    x = torch.randn(1, 3, 32, 32)
    frozen = fastres.freeze(conv_bn(3, 8).eval(), x)
    with torch.no_grad(), pytest.raises(NotImplementedError, match="the model that freeze was"):
        torch.func.jvp(frozen, (x,), (torch.ones_like(x),))


def test_float64_has_tangents():
    x, tangent = torch.randn(2, 2, 8, 6, 6, dtype=torch.float64)
    weight = WEIGHT.double()
    ours = torch.func.jvp(
        lambda x: ops.conv_bn_act(x, packed(weight), kernel_size=3), (x,), (tangent,)
    )
    theirs = torch.func.jvp(lambda x: F.conv2d(x, weight), (x,), (tangent,))
    torch.testing.assert_close(ours, theirs)
