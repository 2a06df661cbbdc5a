"""What a forward does that a trace cannot repeat: an accelerated model does it all the same."""

from __future__ import annotations

import copy
import types

import pytest
import torch
from nets import conv_bn, ops, randomised, reasons, runs_fused
from torch import Tensor, nn

import fastres


class _Parts(nn.Module):
    """Two convolutions that can be fused, whatever the class made of them does between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_bn(3, 8), conv_bn(8, 8)
        self.config = types.SimpleNamespace(calls=0)


class _AsksForAnAttribute(_Parts):
    def forward(self, x):
        x = x.tensors if hasattr(x, "tensors") else x
        mask = getattr(x, "mask", None)
        return self.second(self.first(x if mask is None else x * mask))


class _AsksForTheType(_Parts):
    def forward(self, x):
        y = self.first(x)
        return self.second(y) if type(y) is Tensor else y


class _CatchesTheBranch(_Parts):
    def forward(self, x):
        y = self.first(x)
        try:
            positive = bool(y.sum() > -1e9)
        except Exception:
            positive = False
        return self.second(y) if positive else y


class _CatchesTheNumber(_Parts):
    def forward(self, x):
        y = self.first(x)
        try:
            scale = float(y.shape[1])
        except Exception:
            scale = 0.0
        return self.second(y) * scale


class _CatchesTheDraw(_Parts):
    def forward(self, x):
        y = self.first(x)
        try:
            torch.rand(1)
        except Exception:
            return y
        return self.second(y)


class _Marks(_Parts):
    def forward(self, x):
        y = self.second(self.first(x))
        y.mark = "marked"
        return y


class _ComputesWithParameters(_Parts):
    def forward(self, x):
        norm = sum(p.abs().sum().item() for p in self.parameters())
        return self.second(self.first(x)) / norm


MODELS = (
    _AsksForAnAttribute,
    _AsksForTheType,
    _CatchesTheBranch,
    _CatchesTheNumber,
    _CatchesTheDraw,
    _Marks,
    _ComputesWithParameters,
)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 16, 12)


@pytest.mark.parametrize("cls", MODELS)
@torch.no_grad()
def test_follows_the_code(cls, x):
    model = randomised(cls())
    fused = fastres.accelerate(copy.deepcopy(model))
    assert runs_fused(fused, x)
    for scale in (1.0, 1.5):
        for m in (model, fused):
            m.first[0].weight.mul_(scale)
        out, expected = fused(x), model(x)
        torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-4)
        assert getattr(out, "mark", None) == getattr(expected, "mark", None)


def test_reasons():
    found = {cls: reasons(randomised(cls())).get("", "") for cls in MODELS}
    assert found == {
        _AsksForAnAttribute: "",
        _AsksForTheType: "tracing failed: it asks for the type of a value",
        _CatchesTheBranch: "tracing failed: it branches on a value that is not known before the "
        "call",
        _CatchesTheNumber: "tracing failed: it asks for the number of a value",
        _CatchesTheDraw: "tracing failed: it draws random numbers",
        _Marks: "tracing failed: it assigns the attribute 'mark' of a value",
        _ComputesWithParameters: "tracing failed: it computes with parameters alone",
    }


KEPT: dict[str, Tensor] = {}
ALL: list[Tensor] = []


class _KeepsOutside(_Parts):
    def forward(self, x):
        y = self.first(x)
        KEPT["y"] = y
        ALL.append(y)
        return self.second(y)


@torch.no_grad()
def test_what_is_kept_outside_are_tensors(x):
    model = randomised(_KeepsOutside())
    fused = fastres.accelerate(copy.deepcopy(model))
    ALL.clear()
    for scale in (1, 2):
        fused(x * scale)
        found = KEPT["y"]
        model(x * scale)
        torch.testing.assert_close(found, KEPT["y"], rtol=1e-4, atol=1e-4)
    assert [type(value) for value in ALL] == [Tensor] * 4
    assert runs_fused(fused, x)


class _CountsCalls(_Parts):
    def forward(self, x):
        self.config.calls += 1
        return self.second(self.first(x))


@torch.no_grad()
def test_objects_of_the_model_are_changed_once_a_call(x):
    fused = fastres.accelerate(randomised(_CountsCalls()))
    for _ in range(3):
        fused(x)
    assert fused.config.calls == 3
    assert runs_fused(fused, x)


class _FollowsItsDtype(_Parts):
    def forward(self, x):
        parameter = next(self.parameters())
        return self.second(self.first(x.to(parameter.dtype)))


@torch.no_grad()
def test_the_dtype_that_a_forward_reads(x):
    fused = fastres.accelerate(randomised(_FollowsItsDtype()))
    assert ops(fused) == {"conv_bn_act": 2}
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        assert fused.to(dtype)(x).dtype == dtype
        assert runs_fused(fused, x)


class _Prompted(_Parts):
    """Adds a tensor that is no parameter of it, which somebody may train."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = torch.zeros(8, 1, 1)

    def forward(self, x):
        return self.second(self.first(x) + self.prompt)


def _trained_attribute(model: nn.Module) -> Tensor:
    model.prompt = torch.zeros(8, 1, 1, requires_grad=True)
    return model.prompt


def _trained_in_a_hook(model: nn.Module) -> Tensor:
    prompt = torch.zeros(8, 1, 1, requires_grad=True)
    model.first.register_forward_hook(lambda module, args, out: out + prompt)
    return prompt


@pytest.mark.parametrize("train", [_trained_attribute, _trained_in_a_hook])
def test_gradients_of_what_is_no_parameter(train, x):
    grads = []
    model = randomised(_Prompted()).requires_grad_(False)
    for m in (model, fastres.accelerate(copy.deepcopy(model))):
        m(x)  # before there is anything to train
        prompt = train(m)
        m(x).square().sum().backward()
        grads.append(prompt.grad)
        assert not m(x.detach()).detach().requires_grad
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-2)
    assert grads[0].count_nonzero() > 0


class _AddsByName(_Parts):
    def forward(self, x):
        y = self.first(x)
        z = self.second(y)
        y.__iadd__(1.0)
        y.__setitem__((0, 0), 0.0)
        return z + y


@torch.no_grad()
def test_in_place_operators_called_by_name(x):
    model = randomised(_AddsByName())
    fused = fastres.accelerate(copy.deepcopy(model))
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)
    assert runs_fused(fused, x)
