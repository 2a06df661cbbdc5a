"""Whole bottlenecks, and what only looks like one."""

from __future__ import annotations

import pytest
import torch
from nets import Bottleneck, Function, check, ops, randomised
from torch import nn
from torch.nn import functional as F

import fastres


@pytest.mark.parametrize(
    "block",
    [
        Bottleneck(),
        Bottleneck(groups=8),
        Bottleneck(groups=2, dilation=2),
        Bottleneck(stride=2, out=24),
        Bottleneck(out=24, groups=4),
        Bottleneck(stride=2),
        Bottleneck(act=nn.SiLU),
        Bottleneck(act=nn.ReLU6),
        Bottleneck(act=nn.LeakyReLU),
    ],
)
def test_bottlenecks(block, assert_accurate):
    check(block, torch.randn(2, 16, 9, 7), assert_accurate, grouped_bottleneck=1)
    pair = nn.Sequential(Bottleneck(), block)
    check(pair, torch.randn(1, 16, 6, 5), assert_accurate, grouped_bottleneck=2)


def test_bottleneck_without_blocks():
    model = randomised(Bottleneck())
    x = torch.randn(1, 16, 5, 5)
    assert dict.fromkeys(f.op for f in fastres.explain(model, fuse_blocks=False).fused) == {
        "conv_bn_act": None
    }
    with torch.no_grad():
        eager = model(x)
        fastres.accelerate(model, fuse_blocks=False)
        torch.testing.assert_close(model(x), eager)
    assert ops(model) == {"conv_bn_act": 3}


def _mixed_acts(m, x):
    y = F.relu(m.b.bn1(m.b.conv1(x)))
    y = F.silu(m.b.bn2(m.b.conv2(y)))
    return F.relu(m.b.bn3(m.b.conv3(y)) + x)


def _inner_value_returned(m, x):
    y = F.relu(m.b.bn1(m.b.conv1(x)))
    z = F.relu(m.b.bn2(m.b.conv2(y)))
    return F.relu(m.b.bn3(m.b.conv3(z)) + x) + y.mean()


def _input_overwritten(m, x):
    x = x * 1
    y = F.relu(m.b.bn1(m.b.conv1(x)))
    y = F.relu(m.b.bn2(m.b.conv2(y)))
    x.mul_(2)
    return F.relu(m.b.bn3(m.b.conv3(y)) + x)


def _two_shortcuts(m, x):
    y = F.relu(m.b.bn1(m.b.conv1(x)))
    y = F.relu(m.b.bn2(m.b.conv2(y)))
    return F.relu(m.b.bn3(m.b.conv3(y)) + x + x)


@pytest.mark.parametrize(
    "forward", [_mixed_acts, _inner_value_returned, _input_overwritten, _two_shortcuts]
)
def test_nearly_bottlenecks(forward, assert_accurate):
    x = torch.randn(2, 16, 9, 7)
    check(Function(forward, b=Bottleneck()), x, assert_accurate, conv_bn_act=3)


@pytest.mark.parametrize("block", [Bottleneck(padding=0), Bottleneck(dilation=2, padding=1)])
def test_bottlenecks_that_shrink_are_none(block):
    assert ops(randomised(block)) == {"conv_bn_act": 3}


def test_leaky_bottleneck_with_a_slope_of_its_own(assert_accurate):
    block = Bottleneck(act=lambda inplace: nn.LeakyReLU(0.2, inplace))
    check(block, torch.randn(1, 16, 5, 5), assert_accurate, conv_bn_act=3)
