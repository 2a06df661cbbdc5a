"""Hooks, and forwards that are more than a graph: those parts run as they were."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from nets import (
    Function,
    TinyNet,
    conv_bn,
    ops,
    randomised,
    reasons,
    runs_fused,
)
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import fastres


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 32, 24)


@pytest.fixture
def model() -> nn.Module:
    return randomised(TinyNet())


@pytest.fixture
def fused(model) -> nn.Module:
    return fastres.accelerate(copy.deepcopy(model))


def test_hooks_fire_and_may_change_values(model, fused, x):
    seen: list[list[torch.Tensor]] = [[], []]
    for i, m in enumerate((model, fused)):
        m.layer1[0].conv2.register_forward_hook(lambda _, a, out, i=i: seen[i].append(out))
        m.layer2[0].register_forward_hook(lambda _, a, out: out * 2)
        m.layer2[1].register_forward_pre_hook(lambda _, a: (a[0] + 1,))
        m.register_forward_hook(lambda _, a, out: out - 1)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))
        assert runs_fused(fused, x)
    torch.testing.assert_close(seen[1][0], seen[0][0])
    assert {path for path, reason in reasons(fused).items() if reason == "has hooks"} == {
        "layer1.0.conv2",
        "layer2.0",
        "layer2.1",
    }
    assert ops(fused)["grouped_bottleneck"] == 2  # inside the modules with hooks


def test_hooks_that_come_and_go(model, fused, x):
    count = 0

    def hook(*_):
        nonlocal count
        count += 1

    with torch.no_grad():
        expected = model(x)
        fused(x)
        handle = fused.layer2[0].conv2.register_forward_hook(hook)
        torch.testing.assert_close(fused(x), expected)
        assert count == 1
        handle.remove()
        torch.testing.assert_close(fused(x), expected)
        assert count == 1
        handle = nn.modules.module.register_module_forward_hook(hook)
        fused(x)
        assert count > 20
        handle.remove()
        fused.layer1.register_full_backward_hook(hook)
        count = 0
    fused(x).sum().backward()
    assert count == 1


def test_hook_that_differentiates(fused, x):
    def hook(module, inputs, out):
        with torch.enable_grad():
            y = inputs[0].detach().requires_grad_()
            (y * y).sum().backward()
            torch.testing.assert_close(y.grad, 2 * y.detach())

    fused.layer2[0].register_forward_hook(hook)
    with torch.no_grad():
        fused(x)


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_parametrized_convolutions(wrap, model, x):
    wrap(model.layer2[0].conv2)
    with torch.no_grad():
        eager = model(x)
        fastres.accelerate(model)
        torch.testing.assert_close(model(x), eager)
        assert runs_fused(model, x)


def test_parametrized_later(model, fused, x):
    for m in (model, fused):
        with torch.no_grad():
            m(x)
        nn.utils.parametrizations.weight_norm(m.layer2[0].conv2)
        m.layer2[0].conv2.parametrizations.weight.original0.data.mul_(2)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))


def test_pruned_and_lazy_convolutions(x):
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU())
    fastres.accelerate(model)
    with torch.no_grad():
        model(x)
        randomised(model)
        prune.l1_unstructured(model[0], "weight", amount=0.5)
        eager = fastres.restore(copy.deepcopy(model))(x)
        torch.testing.assert_close(model(x), eager)


# ---- what a trace would get wrong ----------------------------------------------------------------


class _Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.log: list[int] = []

    def forward(self, x):
        self.calls += 1
        self.log.append(self.calls)
        return x


class _Random(nn.Module):
    def forward(self, x):
        return x * torch.rand(1).item()


class _Branches(nn.Module):
    def forward(self, x):
        return x + 1 if x.mean() > 0 else x - 1


class _MakesTensor(nn.Module):
    def forward(self, x):
        total = torch.zeros(1)
        total += x.sum()
        return x + total


class _Autocasts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.conv(x).float()


class _Differentiates(nn.Module):
    def forward(self, x):
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            return torch.autograd.grad((y**2).sum(), y)[0]


class _IsInstance(nn.Module):
    def forward(self, x):
        return x * 2 if isinstance(x, torch.Tensor) else x


class _Unpacks(nn.Module):
    def forward(self, x):
        n, c, h, w = x.shape
        return x.view(n, c, h * w).view(n, c, h, w) if c == 8 else x


@pytest.mark.parametrize(
    "inner",
    [_Counts, _Random, _Branches, _MakesTensor, _Autocasts, _Differentiates, _IsInstance, _Unpacks],
)
def test_forwards_that_are_more_than_a_graph(inner):
    """The part that cannot be traced runs as it was; what is around it is fused."""
    model = randomised(nn.Sequential(*conv_bn(3, 8), inner(), *conv_bn(8, 8), nn.ReLU()))
    x = torch.randn(2, 3, 8, 8)
    fused = fastres.accelerate(copy.deepcopy(model))
    for _ in range(3):
        with torch.no_grad():
            torch.manual_seed(0)
            eager = model(x)
            torch.manual_seed(0)
            out = fused(x)
        tolerance = 0.05 if inner is _Autocasts else 1e-5
        torch.testing.assert_close(out, eager, rtol=tolerance, atol=tolerance)
        x = -x
    assert ops(fused)["conv_bn_act"] >= 2
    if inner is _Counts:
        assert fused[2].calls == 3
        assert fused[2].log == [1, 2, 3]


@pytest.fixture(params=["alone", "beside another thread"])
def threads(request):
    """As in a script, and as in a notebook or with a progress bar."""
    done = threading.Event()
    others = [] if request.param == "alone" else [threading.Thread(target=done.wait)]
    for other in others:
        other.start()
    yield
    done.set()
    for other in others:
        other.join()


@pytest.mark.usefixtures("threads")
def test_tracing_leaves_no_trace():
    model = randomised(nn.Sequential(conv_bn(3, 8), _Counts(), _Random()))
    state = torch.get_rng_state()
    fastres.explain(model)
    fastres.accelerate(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert (model[1].calls, model[1].log) == (0, [])


class _Options(nn.Module):
    """Called in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x, mask=None, scale=1.0, *, flip=False, **unused):
        x = self.conv(x) * scale
        if mask is not None:
            x = x * mask
        return {"x": x.flip(-1) if flip else x, "n": x.shape[0], "list": [x, (scale, None)]}


def test_calls_of_many_kinds():
    model = _Options()
    fused = fastres.accelerate(copy.deepcopy(model))
    x, mask = torch.randn(2, 8, 5, 5), torch.rand(2, 1, 5, 5)
    calls = [
        ((x,), {}),
        ((x, mask), {}),
        ((x,), {"mask": mask}),
        ((x, None, 2), {}),
        ((x, None, 2.0), {"flip": True}),
        ((x, mask), {"flip": True, "unused": "text"}),
        ((), {"x": x}),
    ]
    with torch.no_grad():
        for args, kwargs in calls * 2:
            out, eager = fused(*args, **kwargs), model(*args, **kwargs)
            torch.testing.assert_close(out["x"], eager["x"])
            assert out["n"] == eager["n"]
            assert type(out["list"]) is list
            assert out["list"][1] == eager["list"][1]
            assert type(out["list"][1][0]) is type(eager["list"][1][0])
        with pytest.raises(TypeError):
            fused()
        assert runs_fused(fused, x)


@pytest.mark.parametrize("grad", [False, True])
def test_a_model_that_cannot_be_traced_any_more_runs_its_parts_fused(grad):
    def forward(m, x):
        if m.signed and x.sum() > 0:
            x = -x
        return m.b(m.a(x)) + x

    model = randomised(Function(forward, a=conv_bn(8, 8), b=conv_bn(8, 8))).eval()
    model.signed = False
    fused, x = fastres.accelerate(copy.deepcopy(model)), torch.ones(2, 8, 9, 9)
    with torch.set_grad_enabled(grad):
        for signed in (False, True, False):
            model.signed = fused.signed = signed
            torch.testing.assert_close(fused(x), model(x))
            assert runs_fused(fused, x)
            assert ("" in reasons(fused)) == signed


@pytest.mark.parametrize(
    "pack", [lambda x: {"image": x}, lambda x: [x], lambda x: (x,)], ids=["dict", "list", "tuple"]
)
@pytest.mark.parametrize("training", [False, True])
def test_a_model_that_takes_containers_runs_its_parts_fused(pack, training):
    def forward(m, batch):
        x = batch["image"] if isinstance(batch, dict) else batch[0]
        return m.b(m.a(x))

    model = randomised(Function(forward, a=conv_bn(8, 8), b=conv_bn(8, 8))).train(training)
    fused, batch = fastres.accelerate(copy.deepcopy(model)), pack(torch.randn(2, 8, 9, 9))
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(fused(batch), model(batch))
        assert runs_fused(fused, batch)
    kind = type(batch).__name__
    assert f"note: was called with a {kind}: in such calls its parts" in str(fastres.explain(fused))
    assert fastres.restore(fused).a.__class__ is model.a.__class__


def test_a_model_that_is_another_at_every_call_is_given_up():
    model = Function(lambda m, x: m.conv(x) * m.factor, conv=nn.Conv2d(3, 3, 1))
    model.factor = -1.0
    fastres.accelerate(model)
    x = torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        for i in range(20):
            model.factor = float(i)
            torch.testing.assert_close(model(x), model.conv(x) * i)
    assert "changes at every call" in str(fastres.explain(model))


def test_forwards_with_unusual_signatures():
    class Decorated(nn.Conv2d):
        @torch.no_grad()
        def forward(self, x):
            return F.relu(super().forward(x))

    class Optional(nn.Conv2d):
        def forward(self, x=None, labels=None):
            return super().forward(x)

    class Variable(nn.Conv2d):
        def forward(self, *inputs, **options):
            return super().forward(inputs[0])

    x = torch.randn(1, 3, 6, 6)
    for cls in (Decorated, Optional, Variable):
        model = cls(3, 4, 3)
        eager = model(x).detach()
        with torch.no_grad():
            torch.testing.assert_close(fastres.accelerate(model)(x), eager)
            assert runs_fused(model, x)


def test_lists_of_registered_modules():
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = conv_bn(3, 4), conv_bn(4, 4)
            self.order = [self.first, self.second]

        def forward(self, x):
            for module in self.order:
                x = module(x)
            return x

    model = fastres.accelerate(Listed())  # in training mode
    assert ops(model) == {"conv_bn_act": 2}
    x = torch.randn(1, 3, 6, 6)
    randomised(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x), model.second(model.first(x)))
        assert runs_fused(model, x)
