"""torch.compile(model, backend="fastres")."""

from __future__ import annotations

import copy
from importlib import metadata

import pytest
import torch
import torch._dynamo
from nets import TinyNet, randomised
from torch import nn
from torch.nn import functional as F

import fastres
from fastres.dynamo import fastres_backend


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 32, 24)


@pytest.fixture
def model() -> nn.Module:
    return randomised(TinyNet())


def _compile(function, **kwargs):
    return torch.compile(function, backend=fastres_backend, fullgraph=True, **kwargs)


def _runs_fused(function, *args) -> bool:
    with torch.profiler.profile() as profile:
        function(*args)
    return any(event.name.startswith("fastres::") for event in profile.events())


def test_registered():
    try:
        metadata.distribution("fastres")
    except metadata.PackageNotFoundError:
        pytest.skip("run from a checkout, which registers nothing: install the package")
    (entry,) = metadata.entry_points(group="torch_dynamo_backends", name="fastres")
    assert entry.load() is fastres_backend
    assert "fastres" in torch._dynamo.list_backends()


def test_inference(model, x, assert_accurate):
    compiled = _compile(model)
    with torch.no_grad():
        eager = model(x)
        double = randomised(TinyNet()).double()
        double.load_state_dict(model.state_dict())
        exact = double(x.double())
        assert_accurate(compiled(x), eager, exact, magnitude=exact.abs)
        assert compiled(x).stride() == eager.stride()
        assert _runs_fused(compiled, x)
        channels_last = x.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(compiled(channels_last), eager)


def test_gradients_and_training(model, x):
    compiled = _compile(model)
    for train in (False, True):
        model.train(train)
        leaf = x.clone().requires_grad_()
        compiled(leaf).sum().backward()
        other = x.clone().requires_grad_()
        model(other).sum().backward()
        torch.testing.assert_close(leaf.grad, other.grad)


def test_dynamic_shapes(model, x):
    compiled = _compile(model, dynamic=True)
    with torch.no_grad():
        for shape in ((2, 3, 32, 24), (3, 3, 40, 24), (1, 3, 17, 33)):
            x = torch.randn(shape)
            torch.testing.assert_close(compiled(x), model(x))
            assert _runs_fused(compiled, x)


@pytest.mark.parametrize("staleness", ["content", "version"])
def test_follows_parameters(staleness, model, x):
    compiled = _compile(model, options={"staleness": staleness})
    with torch.no_grad():
        compiled(x)
        model.conv1.weight.mul_(2)
        model.bn1.running_mean.add_(1)
        torch.testing.assert_close(compiled(x), model(x))
        model.layer2[0].conv1.weight.data = torch.randn(8, 16, 1, 1)
        torch.testing.assert_close(compiled(x), model(x))
        if staleness == "content":
            model.conv1.weight.data.mul_(2)
            torch.testing.assert_close(compiled(x), model(x))


def test_accelerated_models_compile_too(model, x):
    with torch.no_grad():
        eager = model(x)
        compiled = _compile(fastres.accelerate(model))
        torch.testing.assert_close(compiled(x), eager)
        assert _runs_fused(compiled, x)


def test_functions_and_graph_breaks(x):
    weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def function(x):
        y = F.relu(F.conv2d(x, weight))
        torch._dynamo.graph_break()
        return F.conv2d(y, torch.ones(4, 4, 1, 1)), y.shape

    compiled = torch.compile(function, backend=fastres_backend)
    with torch.no_grad():
        out, shape = compiled(x)
        torch.testing.assert_close(out, function(x)[0])
        assert shape == (2, 4, 30, 22)


def test_weights_given_as_input_are_not_packed(x):
    def function(x, weight):
        return F.conv2d(x, weight)

    weight = torch.randn(4, 3, 3, 3)
    with torch.no_grad():
        assert torch.equal(_compile(function)(x, weight), function(x, weight))


def test_autocast_around_and_inside(model, x):
    conv = nn.Conv2d(3, 4, 3)

    def inside(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = conv(x)
        return F.relu(y)

    with torch.no_grad():
        assert _compile(inside)(x).dtype == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert _compile(model)(x).dtype == model(x).dtype


def test_in_place_input(x):
    conv = nn.Conv2d(3, 3, 1)

    def function(x):
        x += 1
        return F.relu(conv(x) + x)

    with torch.no_grad():
        given = x.clone()
        expected = function(given)
        torch.testing.assert_close(_compile(function)(x), expected)
        assert torch.equal(x, given)


def test_double_runs_as_it_was(model, x):
    model.double()
    with torch.no_grad():
        assert torch.equal(_compile(model)(x.double()), model(x.double()))


def test_options(model, x):
    with torch.no_grad():
        for options, message in (
            ({"speed": 11}, "unknown options .'speed'., expected staleness, fuse_blocks"),
            ({"staleness": "never"}, "staleness must be one of content, version, got 'never'"),
        ):
            with pytest.raises(Exception, match=message):
                _compile(model, options=options)(x)
        torch._dynamo.reset()
        compiled = _compile(model, options={"fuse_blocks": False})
        torch.testing.assert_close(compiled(x), model(x))


class _WritesParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        self.conv.bias.add_(1.0)
        return self.norm(self.conv(x))


@torch.no_grad()
def test_parameters_that_the_graph_writes_to(x):
    model = randomised(_WritesParameters())
    compiled = _compile(copy.deepcopy(model))
    for _ in range(2):
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
