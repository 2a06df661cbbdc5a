"""Outputs, and values that somebody looks at, have the strides that eager gives them."""

from __future__ import annotations

import pytest
import torch
from nets import Function, check, conv_bn, randomised
from torch import nn
from torch.nn import functional as F

import fastres


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 8, 9, 7)


_SEEN: list[tuple[int, ...]] = []


class _Strides(nn.Module):
    """Looks at strides, as a custom operator might."""

    def forward(self, x):
        return torch.as_strided(x, x.shape, x.stride())


def _see(module, inputs, output):
    _SEEN.append((inputs[0].stride(), output.stride()))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "tail",
    [
        lambda m, x: x,
        lambda m, x: F.avg_pool2d(torch.cat([x, x * 2], 1), 2),
        lambda m, x: x.reshape(x.shape[0], -1),
        lambda m, x: x.flatten(2),
        lambda m, x: x.permute(0, 2, 3, 1),
        lambda m, x: x[:, 1:3],
        lambda m, x: F.interpolate(x, scale_factor=2.0),
        lambda m, x: torch.as_strided(x, (2, 2), (x.stride(1), x.stride(3))),
        lambda m, x: m.strides(x),
        lambda m, x: x.mean((2, 3)),
        lambda m, x: x.contiguous(),
        lambda m, x: x.contiguous(memory_format=torch.channels_last),
    ],
)
def test_outputs_keep_eagers_strides(tail, channels_last, x, assert_accurate):
    def forward(m, x):
        return tail(m, m.act(m.conv(x)))

    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    model = Function(forward, conv=nn.Conv2d(8, 8, 3), act=nn.ReLU(), strides=_Strides())
    check(model, x, assert_accurate, conv_bn_act=1)


def test_view_of_a_contiguous_activation(x, assert_accurate):
    def forward(m, x):
        return m.conv(x).view(x.shape[0], -1)

    check(Function(forward, conv=nn.Conv2d(8, 8, 3)), x, assert_accurate, conv_bn_act=1)


def test_written_view_of_a_contiguous_activation(x, assert_accurate):
    def forward(m, x):
        y = m.conv(x)
        y.view(x.shape[0], -1).mul_(2)
        return y

    check(Function(forward, conv=nn.Conv2d(8, 8, 3)), x, assert_accurate, conv_bn_act=1)


def test_channels_last_weights_make_channels_last_outputs(x, assert_accurate):
    model = nn.Sequential(*conv_bn(8, 8), nn.ReLU()).to(memory_format=torch.channels_last)
    check(model, x, assert_accurate, conv_bn_act=1)
    fastres.restore(model).to(memory_format=torch.contiguous_format)
    check(model, x, assert_accurate, conv_bn_act=1)


def test_hooks_see_eagers_strides(x):
    model = randomised(nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.ReLU()))
    model[1].register_forward_hook(_see)
    with torch.no_grad():
        model(x)
        fastres.accelerate(model)(x)
    assert _SEEN[-1] == _SEEN[-2]
