"""Zeros that a node of their own puts around a convolution's input become its padding."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import Function, check, conv_bn, ops, randomised
from torch import nn
from torch.nn import functional as F

import fastres


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 8, 9, 7)


PADS = {
    "module": nn.ZeroPad2d(1),
    "asymmetric, as Keras's same": nn.ZeroPad2d((0, 1, 0, 1)),
    "wide": nn.ZeroPad2d((3, 0, 1, 5)),
    "function": lambda x: F.pad(x, (1, 2, 0, 1)),
    "function by keyword": lambda x: F.pad(input=x, pad=(1, 1, 1, 1), mode="constant", value=0.0),
    "empty": nn.ZeroPad2d(0),
}


class Padded(nn.Module):
    def __init__(self, pad, **kwargs):
        super().__init__()
        self.pad = pad
        self.conv, self.bn = conv_bn(8, 8, **kwargs)

    def forward(self, x):
        return F.relu(self.bn(self.conv(self.pad(x))))


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pad", PADS)
def test_zeros(pad, stride, padding, x, assert_accurate):
    model = Padded(PADS[pad], stride=stride, padding=padding)
    check(model, x, assert_accurate, conv_bn_act=1)
    fused = fastres.explain(model).fused[0].modules
    assert any("pad" in module for module in fused)  # it runs no pass of its own


OTHER = {
    "ones": lambda x: F.pad(x, (1, 1, 1, 1), value=1.0),
    "reflected": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "cropped": lambda x: F.pad(x, (-1, 1, 1, 1)),
    "channels too": lambda x: F.pad(x, (1, 1, 1, 1, 0, 0)),
    "rows alone": lambda x: F.pad(x, (1, 1)),
    "negative module": nn.ZeroPad2d((1, -1, 1, 1)),
}


@pytest.mark.parametrize("pad", OTHER)
def test_other_padding_stays(pad, x, assert_accurate):
    model = Padded(OTHER[pad], padding=0)
    check(model, x, assert_accurate, conv_bn_act=1)
    assert not any("pad" in module for module in fastres.explain(model).fused[0].modules)


def test_a_padded_value_with_other_readers_stays(x, assert_accurate):
    def forward(m, x):
        padded = m.pad(x)
        return m.conv(padded).sum() + padded

    model = Function(forward, pad=nn.ZeroPad2d(1), conv=conv_bn(8, 8, padding=0))
    check(model, x, assert_accurate, conv_bn_act=1)


def test_a_write_between_padding_and_convolution(x, assert_accurate):
    """The zeros are put around x as it was."""

    def forward(m, x):
        y = x * 1
        padded = m.pad(y)
        y.mul_(2)
        return m.conv(padded) + y

    model = Function(forward, pad=nn.ZeroPad2d(1), conv=nn.Conv2d(8, 8, 3, bias=False))
    check(model, x, assert_accurate, conv_bn_act=1)


def test_a_bottleneck_with_explicit_padding_is_one_operator(assert_accurate):
    """Keras's way: 1x1, zeros, 3x3 without padding, 1x1."""

    def forward(m, x):
        y = F.relu(m.one(x))
        y = F.relu(m.two(F.pad(y, (1, 1, 1, 1))))
        return F.relu(x + m.three(y))

    block = Function(
        forward,
        one=conv_bn(16, 32, 1),
        two=conv_bn(32, 32, 3, padding=0, groups=4),
        three=conv_bn(32, 16, 1),
    )
    check(block, torch.randn(1, 16, 20, 20), assert_accurate, grouped_bottleneck=1)


def test_unbatched_images_run_as_they_were(x):
    model = fastres.accelerate(randomised(nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(8, 4, 3))))
    with torch.no_grad():
        expected = fastres.restore(copy.deepcopy(model))(x[0])
        assert torch.equal(model(x[0]), expected)
    assert ops(model) == {"conv_bn_act": 1}
