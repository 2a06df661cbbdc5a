"""An accelerated model follows what its code reads outside of it: globals, helpers, settings."""

from __future__ import annotations

import gc
import sys
import types
import weakref
from collections.abc import Callable

import pytest
import torch
from nets import randomised, runs_fused

import fastres

SETTINGS = """
SHIFT = 0.25

def activate(x):
    return x.relu()
"""

SOURCE = """
import functools
from types import SimpleNamespace

from torch import nn

import fastres_test_settings as settings

SCALE = 1.0
SHIFTS = [0.125]
STEPS = 0
CONFIG = SimpleNamespace(head=SimpleNamespace(power=1.0), last=0.0)


class Limits:
    highest = 6.0


class Mixer:
    weight = 0.5
    calls = 0

    def mix(self, x):
        self.calls += 1
        return x * self.weight

MIXER = Mixer()
LAST = {"step": functools.partial(lambda y, x: x + y * CONFIG.last, 1.0)}


def scaled(x):
    return x * SCALE




def around(x):
    factor = 2.0

    def inner(y):
        return y * factor

    def change(value):
        nonlocal factor
        factor = value

    return inner, change

doubled, change_factor = around(None)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)

    @property
    def power(self):
        return CONFIG.head.power

    @staticmethod
    def limited(x):
        return x.clamp(max=Limits.highest)

    def forward(self, x):
        y = settings.activate(self.bn(self.conv(x))) + settings.SHIFT
        y = self.limited(doubled(scaled(y))) ** self.power
        return LAST["step"](MIXER.mix(y)) + SHIFTS[0]

    def training_step(self, x):
        global STEPS
        STEPS += 1
        return self(x).sum()
"""

User = types.ModuleType


def _set_limit(user: User) -> None:
    user.Limits.highest = 0.5


def _append_shift(user: User) -> None:
    user.SHIFTS[0] = 3.0


CHANGES: dict[str, Callable[[User], None]] = {
    "a global": lambda user: setattr(user, "SCALE", 3.0),
    "a list, in place": _append_shift,
    "a helper": lambda user: setattr(user, "scaled", torch.neg),
    "an attribute of a class": _set_limit,
    "a setting in another module": lambda user: setattr(user.settings, "SHIFT", 2.0),
    "a function in another module": lambda user: setattr(user.settings, "activate", torch.tanh),
    "a setting within a setting": lambda user: setattr(user.CONFIG.head, "power", 2.0),
    "a setting of a function in a dict": lambda user: setattr(user.CONFIG, "last", 2.0),
    "an object's attribute": lambda user: setattr(user.MIXER, "weight", 4.0),
    "a method of an object": lambda user: setattr(user.Mixer, "mix", lambda self, x: -x),
    "another object": lambda user: setattr(user, "MIXER", types.SimpleNamespace(mix=torch.neg)),
    "a variable around a function": lambda user: user.change_factor(5.0),
}


@pytest.fixture
def user(monkeypatch) -> User:
    """A module of the user's own, anew for each test."""
    for name, source in (("fastres_test_settings", SETTINGS), ("fastres_test_user", SOURCE)):
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(source, vars(module))
    return module


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_changes(change, training, user):
    x = torch.randn(2, 3, 16, 12)
    model = randomised(user.Net()).train(training)
    fused = fastres.accelerate(model)
    with torch.set_grad_enabled(training):
        before = fused(x)
        CHANGES[change](user)
        after = fused(x)
        expected = fastres.restore(model)(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)


def test_what_other_methods_read_is_nobodys_business(user):
    """A step counter must not cost a trace each step."""
    model = fastres.accelerate(randomised(user.Net()))
    state = model.__dict__["_fastres"]
    x = torch.randn(2, 3, 16, 12)
    model.training_step(x)
    traced = state.misses
    for _ in range(3):
        model.training_step(x)
        user.MIXER.mix(x)  # counts, too
    assert (user.STEPS, state.misses) == (4, traced)
    with torch.no_grad():
        assert runs_fused(model.eval(), x)


def test_module_is_freed(user):
    """Nothing that is remembered keeps a model alive that nobody else does."""
    model = fastres.accelerate(randomised(user.Net()))
    with torch.no_grad():
        model(torch.randn(1, 3, 8, 8))
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
