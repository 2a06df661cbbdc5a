"""An accelerated model follows what is written to its class, and to those that it derives from."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from nets import randomised, runs_fused
from torch import nn

import fastres


class Base(nn.Module):
    """A network whose forward is spread over methods and attributes of classes."""

    factor = 1.0
    shifts = [0.5, 0.25]  # noqa: RUF012 - written in place

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x):
        return self._forward_impl(x)

    def _forward_impl(self, x):
        return torch.relu(self.bn(self.conv(x))) * self.factor + self.shifts[0]


def _silu(self, x):
    return torch.nn.functional.silu(self.bn(self.conv(x)))


def _write_in_place(cls: type) -> None:
    cls.__mro__[1].shifts[0] = 4.0


def _write_to_the_base(cls: type) -> None:
    cls.__mro__[1]._forward_impl = _silu


def _remove(cls: type) -> None:
    cls._forward_impl = _silu
    del cls._forward_impl
    cls.__mro__[1].factor = 3.0


CHANGES: dict[str, Callable[[type], None]] = {
    "forward": lambda cls: setattr(cls, "forward", _silu),
    "a method": lambda cls: setattr(cls, "_forward_impl", _silu),
    "a method of the base": _write_to_the_base,
    "an attribute": lambda cls: setattr(cls, "factor", 2.0),
    "a list, in place": _write_in_place,
    "an attribute, and a method there and back": _remove,
    "__call__": lambda cls: setattr(cls, "__call__", lambda self, x: _silu(self, x) * 2),
}


@pytest.fixture
def network() -> nn.Module:
    """Of classes that no other test has."""
    base = type("Base", (Base,), {"shifts": [0.5, 0.25]})
    return randomised(type("Net", (base,), {})())


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_class(change, training, network):
    x = torch.randn(2, 3, 16, 12)
    cls = type(network)
    fused = fastres.accelerate(network).train(training)
    with torch.set_grad_enabled(training):
        before = fused(x)
        assert training or runs_fused(fused, x)
        CHANGES[change](cls)
        after = fused(x)
        plain = fastres.restore(fused)
        expected = plain(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)


def test_pytorchs_own_class(network, monkeypatch):
    x = torch.randn(2, 3, 16, 12)
    original = nn.Conv2d.forward

    def doubled(self, x):
        return 2 * original(self, x)

    fused = fastres.accelerate(network)
    with torch.no_grad():
        before = fused(x)
        monkeypatch.setattr(nn.Conv2d, "forward", doubled)
        after = fused(x)
        expected = fastres.restore(fused)(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, expected)


def test_the_shortcut_past_the_plan_sees_it_too(network):
    x = torch.randn(2, 3, 16, 12)
    cls = type(network)
    fused = fastres.accelerate(network)
    with torch.no_grad():
        fused(x)
        cls.forward = _silu
        torch.testing.assert_close(torch.func.vmap(fused)(x[None])[0], _silu(network, x))


def test_annotations_are_no_change(network):
    x = torch.randn(2, 3, 16, 12)
    fused = fastres.accelerate(network)
    state = fused.__dict__["_fastres"]
    with torch.no_grad():
        fused(x)
        traced = state.misses
        type(network).__doc__ = "a network"
        assert not type(fused).__mro__[1].__annotations__  # which Python adds when it is read
        fused(x)
    assert state.misses == traced


def test_a_trace_in_another_thread_is_no_change(network):
    x = torch.randn(2, 3, 16, 12)
    fused = fastres.accelerate(network)
    state = fused.__dict__["_fastres"]
    tracing, done = threading.Event(), threading.Event()

    class Waiting(Base):
        def forward(self, x):
            tracing.set()
            done.wait(60)
            return self._forward_impl(x)

    other = randomised(Waiting())
    with torch.no_grad():
        fused(x)
        traced = state.misses
        thread = threading.Thread(target=fastres.explain, args=(other,))
        thread.start()
        assert tracing.wait(60)
        try:
            fused(x)
        finally:
            done.set()
            thread.join()
    assert state.misses == traced
