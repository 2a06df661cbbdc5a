"""Backward passes that overlap, come late, or read what others have changed: as in eager."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from nets import Basic, Bottleneck, Function, TinyNet, conv_bn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from training_step import randomised_for_training

import fastres

MEMORIES = pytest.mark.parametrize("memory", ["keep", "save"])


def blocks() -> nn.Sequential:
    """Every way in which nodes hand something to each other."""
    return randomised_for_training(
        nn.Sequential(
            conv_bn(3, 16), nn.ReLU(), Bottleneck(), Bottleneck(), conv_bn(16, 8), Basic(), Basic()
        )
    )


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).norm() / b.norm().clamp_min(1e-6)) for a, b in pairs)


@pytest.fixture
def net() -> nn.Sequential:
    return blocks()


# ---- several passes at once ----------------------------------------------------------------------


@MEMORIES
def test_a_pass_within_a_hook_of_another(net, memory):
    parameters = list(fastres.accelerate(net, memory=memory).parameters())
    loss = net(torch.randn(2, 3, 16, 16)).pow(2).sum()
    right = torch.autograd.grad(loss, parameters, retain_graph=True)
    inner: list[Tensor] = []

    def hook(grad: Tensor) -> None:
        inner.extend(torch.autograd.grad(loss, parameters[:1], retain_graph=True))

    hooked = net[3].get_submodule("conv2").weight.register_hook(hook)
    found = torch.autograd.grad(loss, parameters, retain_graph=True)
    hooked.remove()
    assert relative(list(found), list(right)) < 1e-6
    assert relative(inner, list(right[:1])) < 1e-6


@MEMORIES
def test_passes_in_threads(net, memory):
    parameters = list(fastres.accelerate(net, memory=memory).parameters())
    loss = net(torch.randn(2, 3, 16, 16)).pow(2).sum()
    right = torch.autograd.grad(loss, parameters, retain_graph=True)
    found: list[list[Tensor]] = []
    begin = threading.Barrier(6)

    def run() -> None:
        begin.wait()
        found.extend(
            list(torch.autograd.grad(loss, parameters, retain_graph=True)) for _ in range(5)
        )

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30
    assert max(relative(one, list(right)) for one in found) < 1e-6


@MEMORIES
def test_many_passes_over_parts_of_one_graph(net, memory):
    """Values that are left for nodes which do not run reach no later pass."""
    parameters = list(fastres.accelerate(net, memory=memory).parameters())
    loss = net(torch.randn(2, 3, 16, 16)).pow(2).sum()
    right = torch.autograd.grad(loss, parameters, retain_graph=True)
    for i in range(0, 70 * 3, 3):
        some = slice(i % len(parameters), i % len(parameters) + 2)
        found = torch.autograd.grad(loss, parameters[some], retain_graph=True)
        assert relative(list(found), list(right[some])) < 1e-6
    again = torch.autograd.grad(loss, parameters)
    assert relative(list(again), list(right)) < 1e-6


def test_a_rebuilt_output_whose_node_does_not_run_frees_its_graph():
    model = fastres.accelerate(blocks(), memory="save")
    watched = []
    for _ in range(2):
        x = torch.randn(2, 3, 16, 16)
        loss = model(x).sum()
        torch.autograd.grad(loss, [model[2].get_submodule("conv2").weight])
        watched.append(torch._C._WeakTensorRef(x))
        del x, loss
    assert all(reference.expired() for reference in watched)


# ---- checkpoints ---------------------------------------------------------------------------------


@MEMORIES
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoints_around_the_model(net, memory, use_reentrant):
    theirs, ours = net, fastres.accelerate(copy.deepcopy(net), memory=memory)
    x = torch.randn(2, 3, 16, 16)
    grads = []
    for model in (theirs, ours):
        image = x.clone().requires_grad_()
        checkpoint(model, image, use_reentrant=use_reentrant).pow(2).mean().backward()
        grads.append([image.grad, *(p.grad for p in model.parameters())])
    assert relative(grads[1], grads[0]) < 1e-3


# ---- what is written to between forward and backward ---------------------------------------------

PreAct = Callable[[], nn.Module]


def preactivated() -> nn.Module:
    """Whose convolutions without BatchNorm others add to in place."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv1(F.relu(m.bn1(x)))
        y = m.conv2(F.relu(m.bn2(y)))
        y += x
        return y

    return Function(
        run,
        bn1=nn.BatchNorm2d(8),
        conv1=nn.Conv2d(8, 8, 3, padding=1, bias=False),
        bn2=nn.BatchNorm2d(8),
        conv2=nn.Conv2d(8, 8, 3, padding=1, bias=False),
    )


WRITTEN: dict[str, PreAct] = {
    "addition": lambda: nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), preactivated()),
    "relu": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3, bias=False)
    ),
    "multiplication": lambda: Function(
        lambda m, x: m.conv(x).mul_(2), conv=nn.Conv2d(3, 8, 3, bias=False)
    ),
}


@MEMORIES
@pytest.mark.parametrize("name", WRITTEN)
def test_writing_to_a_convolutions_output(name, memory):
    model = randomised_for_training(WRITTEN[name]())
    ours = fastres.accelerate(copy.deepcopy(model), memory=memory)
    x = torch.randn(2, 3, 9, 9)
    grads = []
    for one in (model, ours):
        image = x.clone().requires_grad_()
        grads.append(torch.autograd.grad(one(image).pow(2).sum(), [image, *one.parameters()]))
    assert relative(list(grads[1]), list(grads[0])) < 1e-4


def test_a_bias_and_running_statistics_may_change_before_backward():
    theirs = randomised_for_training(nn.Sequential(*conv_bn(3, 8), nn.ReLU(), *conv_bn(8, 4)))
    ours = fastres.accelerate(copy.deepcopy(theirs))
    x, noise = torch.randn(2, 2, 3, 9, 9)
    parts = []
    for training, image in ((False, x), (True, x + noise)):  # each before anything changes
        loss = theirs.train(training)(image).pow(2).sum()
        parts.append(torch.autograd.grad(loss, weights_of(theirs)))
    expected = [clean + noisy for clean, noisy in zip(*parts, strict=True)]
    clean = ours.eval()(x).pow(2).sum()
    noisy = ours.train()(x + noise).pow(2).sum()  # which moves the running statistics
    with torch.no_grad():
        for norm in (m for m in ours.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.bias.clamp_(-0.1, 0.1)
    found = torch.autograd.grad(clean + noisy, weights_of(ours))
    assert relative(list(found), expected) < 1e-4


def weights_of(model: nn.Module) -> list[Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]


# ---- strides of gradients ------------------------------------------------------------------------

LAID_OUT: dict[str, PreAct] = {
    "convolution": lambda: nn.Sequential(*conv_bn(3, 8), nn.ReLU()),
    "bottleneck": lambda: nn.Sequential(Bottleneck()),
    "pre-activation": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3)),
}


@pytest.mark.parametrize("name", LAID_OUT)
@pytest.mark.parametrize("channels_last", [False, True])
def test_an_inputs_gradient_has_its_strides(name, channels_last):
    model = fastres.accelerate(randomised_for_training(LAID_OUT[name]()))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    channels = 16 if name == "bottleneck" else 3
    x = torch.randn(2, channels, 8, 8).to(memory_format=memory_format).requires_grad_()
    (grad,) = torch.autograd.grad(model(x).sum(), x)
    assert grad.stride() == x.stride()


# ---- derivatives of derivatives ------------------------------------------------------------------


def third_derivatives(model: nn.Module, x: Tensor, along: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(model(x).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first * along).sum(), x, create_graph=True)
    return list(torch.autograd.grad((second * along).sum(), [x, *model.parameters()]))


@pytest.mark.parametrize("name", ["in a row", "block"])
def test_third_derivatives(name):
    row = nn.Sequential(*conv_bn(3, 8), nn.SiLU(), *conv_bn(8, 4))
    model = row if name == "in a row" else nn.Sequential(*conv_bn(3, 16), Bottleneck(act=nn.SiLU))
    model = randomised_for_training(model).eval()
    ours = fastres.accelerate(copy.deepcopy(model))
    x, along = torch.randn(2, 2, 3, 8, 8)
    expected = third_derivatives(copy.deepcopy(model).double(), x.double(), along.double())
    assert relative([g.double() for g in third_derivatives(ours, x, along)], expected) < 1e-4
    hvp = [
        torch.autograd.functional.hvp(lambda t, m=m: m(t).pow(3).sum(), x, along)[1]
        for m in (ours, model)
    ]
    assert relative(hvp[:1], hvp[1:]) < 1e-4


# ---- what runs as it was -------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["eps", "running_mean"])
def test_a_batch_norm_that_pytorch_refuses(missing):
    model = nn.Sequential(*conv_bn(3, 8))
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    setattr(norm, missing, 0.0 if missing == "eps" else None)
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises((ValueError, RuntimeError)) as expected:
        model(x)
    with pytest.raises(type(expected.value)) as found:
        fastres.accelerate(model)(x)
    assert str(found.value) == str(expected.value)


@pytest.fixture
def drawing() -> Iterator[None]:
    """Another thread that draws random numbers all the time, as one does that augments images."""
    import random

    stop = threading.Event()

    def draw() -> None:
        while not stop.wait(0.0005):
            random.random()
            torch.rand(1)

    thread = threading.Thread(target=draw)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.mark.usefixtures("drawing")
def test_draws_of_another_thread_are_not_the_models():
    for _ in range(5):
        assert not fastres.explain(TinyNet()).left
        model = fastres.accelerate(TinyNet())
        model(torch.randn(2, 3, 33, 31)).sum().backward()
        ((_, plan),) = model.__dict__["_fastres"].plans
        assert plan.is_useful
