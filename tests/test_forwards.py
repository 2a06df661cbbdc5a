"""``child.forward(x)`` in place of ``child(x)``, as some networks have it."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import Basic, check, ops, randomised, reasons
from torch import nn
from torch.nn import functional as F

import fastres


class _Doubled(nn.Conv2d):
    """A layer of the user's that calls the forward that it overrides."""

    def forward(self, x):
        return 2 * super().forward(x)


class _Explicit(nn.Module):
    """Calls the ``forward`` of every child but one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.relu, self.block, self.last = nn.ReLU(), Basic(), _Doubled(8, 8, 1)

    def forward(self, x):
        x = self.relu.forward(self.bn.forward(self.conv.forward(x)))
        return self.last.forward(self.block(x))


class _Branch(nn.Module):
    """Cannot be traced."""

    def forward(self, x):
        return F.relu(x) if x.sum() > 0 else x


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 16, 12)


def test_is_fused_like_a_call(x, assert_accurate):
    check(_Explicit(), x, assert_accurate, conv_bn_act=4)


def test_trains_like_a_call(x):
    model = _Explicit()
    fused = fastres.accelerate(copy.deepcopy(model))
    assert not reasons(fused)
    results = []
    for m in (model, fused):
        m(x).square().mean().backward()
        results.append([p.grad for p in m.parameters()] + list(m.buffers()))
    for ours, eager in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-5)


def test_passes_by_the_hooks_of_the_child(x):
    model = randomised(_Explicit())
    fused = fastres.accelerate(copy.deepcopy(model))
    with torch.no_grad():
        before = fused(x)
        for m in (model, fused):
            m.bn.register_forward_hook(lambda module, args, out: out + 1)
            m.block.register_forward_hook(lambda module, args, out: out + 1)
        torch.testing.assert_close(fused(x), model(x))
        assert not torch.allclose(fused(x), before)  # the block is called, with its hook
        for m in (model, fused):
            m.last.register_forward_hook(lambda module, args, out: out + 1)
            m.last.stride = (2, 2)  # of a module whose inside may be in the trace
        torch.testing.assert_close(fused(x), model(x))


def test_keeps_what_cannot_be_traced(x):
    model = _Explicit()
    model.relu = _Branch()
    randomised(model)
    fused = fastres.accelerate(copy.deepcopy(model))
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))
    assert ops(fused) == {"conv_bn_act": 4}


def test_classes_are_as_they_were():
    classes = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, Basic, _Doubled, _Explicit)
    before = [cls.forward for cls in classes]
    fastres.explain(_Explicit())
    model = _Explicit()
    model.block.forward = None  # tracing fails
    fastres.explain(model)
    assert [cls.forward for cls in classes] == before
