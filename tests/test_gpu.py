"""What programs do with a model on a GPU: runs where there is one, on each backend for it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from gpu_kernels import gpu_kernels
from nets import randomised, runs_fused
from torch import Tensor, nn
from torch.nn import functional as F
from training_step import check_training, randomised_for_training, training_ops

import fastres
from fastres import _library, dynamo

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

GPU = torch.device("cuda")
BACKENDS = [name for name in ("cudnn", "cuda", "triton") if name in fastres.available_backends()]
NETWORKS = ("resnet18", "resnet50", "resnext50_32x4d")


@pytest.fixture(scope="module", params=BACKENDS, autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs each test on each of them."""
    with gpu_kernels(request.param):
        yield request.param


@pytest.fixture
def _trains() -> None:
    """For tests of training operators."""
    if _library.leaves_alone("cuda", training=True):
        pytest.skip("on cuDNN training is PyTorch's")


def make(name: str) -> nn.Module:
    return fastres.restore(getattr(fastres.models, name)(weights=None, num_classes=5)).to(GPU)


def images(n: int = 4, size: int = 64) -> Tensor:
    return torch.randn(n, 3, size, size).to(GPU)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return F.cross_entropy(model(x), torch.arange(len(x), device=x.device) % 5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_networks(assert_accurate, name, dtype):
    model, x = randomised(make(name)), images().to(dtype)
    exact = copy.deepcopy(model.to(dtype)).double()(x.double())
    eager = model(x)
    for fused in (fastres.accelerate(copy.deepcopy(model)), fastres.freeze(model)):
        assert runs_fused(fused, x)
        assert_accurate(fused(x), eager, exact, magnitude=exact.abs)


@pytest.mark.usefixtures("_trains")
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients(name):
    check_training(make(name).train(), images(4, 48), neighbours=6)


def test_a_model_may_move():
    model, x = randomised(make("resnet18")), images()
    fused = fastres.accelerate(copy.deepcopy(model))
    with torch.no_grad():
        expected = model(x).cpu()
        for device in ("cuda", "cpu", "cuda"):
            out = fused.to(device)(x.to(device)).cpu()
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_an_input_elsewhere_raises_what_eager_raises():
    model = randomised(make("resnet18"))
    for runs in (model, fastres.accelerate(copy.deepcopy(model))):
        with pytest.raises(RuntimeError, match=r"same device|should be the same|cpu"):
            runs(torch.randn(1, 3, 64, 64))


def captured(call: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """The graph of a call, and the tensor that holds its result."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph, out


@pytest.mark.parametrize("form", ["freeze", "accelerate"])
@torch.no_grad()
def test_a_captured_network_follows_its_input(form):
    model, x = randomised(make("resnext50_32x4d")), images()
    fused = getattr(fastres, form)(model)
    graph, out = captured(lambda: fused(x))
    for _ in range(2):
        x.copy_(images())
        graph.replay()
        assert torch.equal(out, fused(x))


@pytest.mark.usefixtures("_trains")
def test_a_captured_training_step_trains():
    model, x = make("resnet18").train(), images(8)
    fused = fastres.accelerate(copy.deepcopy(model))

    def step_of(trained: nn.Module) -> Callable[[], Tensor]:
        optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3, momentum=0.9)

        def step() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(trained, x)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    graph, loss = captured(step_of(fused))
    plain = step_of(model)
    for _ in range(3):  # the steps that warm up; what is captured does not run
        plain()
    for _ in range(3):
        expected = plain()
        graph.replay()
        torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_streams_of_their_own():
    model, inputs = randomised(make("resnet18")), [images() for _ in range(4)]
    frozen = fastres.freeze(model)
    expected = [frozen(x) for x in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in inputs]
    found: list[Tensor] = []
    for _ in range(5):
        found.clear()
        for stream, x in zip(streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                found.append(frozen(x))
        torch.cuda.synchronize()
        for ours, alone in zip(found, expected, strict=True):
            assert torch.equal(ours, alone)


@pytest.mark.usefixtures("_trains")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mixed_precision_trains(dtype):
    model = randomised_for_training(make("resnext50_32x4d"))
    x, losses = images(16), []
    for trained in (model, fastres.accelerate(copy.deepcopy(model))):
        scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
        optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3, momentum=0.9)
        found = []
        for _ in range(8):
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype):
                loss = loss_of(trained, x)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            found.append(loss.item())
        losses.append(found)
    # Rounded in other places, through 53 layers: the steps drift apart.
    assert losses[1][:4] == pytest.approx(losses[0][:4], rel=0.1)
    assert min(losses[1]) < losses[1][0]


@pytest.mark.usefixtures("_trains")
def test_a_training_step_is_deterministic():
    model, x = fastres.accelerate(make("resnext50_32x4d").train()), images(16)
    found = []
    for _ in range(3):
        model.zero_grad()
        loss_of(model, x).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for again in found[1:]:
        assert all(map(torch.equal, again, found[0]))


@pytest.mark.usefixtures("_trains")
def test_a_training_step_takes_less_memory():
    model, x = make("resnext50_32x4d").train(), images(32, 128)
    x = x.to(memory_format=torch.channels_last)
    model.to(memory_format=torch.channels_last)
    peaks = []
    for trained in (model, fastres.accelerate(copy.deepcopy(model))):
        for _ in range(2):
            trained.zero_grad(set_to_none=True)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            loss_of(trained, x).backward()
            peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[3] < 0.9 * peaks[1]


@pytest.mark.usefixtures("_trains")
def test_everything_is_fused():
    counts = training_ops(fastres.accelerate(make("resnext50_32x4d").train()), images(2))
    assert counts == {"conv_stats": 53, "conv_stats_backward": 53, "affine_add_act": 17}


@pytest.mark.parametrize("backend_of", ["eager", "aot_eager", "inductor"])
@torch.no_grad()
def test_the_compiler_runs_an_accelerated_model(backend_of):
    model, x = randomised(make("resnet18")), images()
    expected = model(x)
    compiled = torch.compile(fastres.accelerate(model), backend=backend_of)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_compiler_backend():
    model, x = randomised(make("resnet18")), images()
    expected = model(x)
    out = torch.compile(copy.deepcopy(model), backend=dynamo.fastres_backend)(x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
