"""accelerate: the same object, fused where no gradient is needed, eager everywhere else."""

from __future__ import annotations

import copy
import gc
import inspect
import threading
import weakref

import pytest
import torch
from nets import (
    Function,
    TinyNet,
    ops,
    randomised,
    reasons,
    runs_fused,
)
from torch import nn
from torch.nn import functional as F

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


def test_identity_of_the_model(model, x):
    keys, parameters = list(model.state_dict()), list(model.parameters())
    cls, text = type(model), repr(model)
    assert fastres.accelerate(model) is model
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert isinstance(model, cls)
    assert repr(model) == text
    assert type(model).__name__ == cls.__name__
    assert type(model).__qualname__ == cls.__qualname__
    assert type(model).__module__ == cls.__module__
    assert inspect.signature(model.forward) == inspect.signature(cls.forward.__get__(model))
    with torch.no_grad():
        model(x)
    assert list(model.state_dict()) == keys
    assert not any("fastres" in name for name, _ in model.named_modules())


def test_twice_and_restore(model, x):
    cls = type(model)
    with torch.no_grad():
        eager = model(x)
        fastres.accelerate(fastres.accelerate(model))
        assert type(model).__mro__[1] is cls
        assert runs_fused(model, x)
        assert fastres.restore(model) is model
        assert type(model) is cls
        assert not any("_fastres" in m.__dict__ for m in model.modules())
        assert torch.equal(model(x), eager)
    fastres.restore(model)


def test_part_first_then_whole(model, x):
    with torch.no_grad():
        eager = model(x)
        fastres.accelerate(model.layer2)
        torch.testing.assert_close(model(x), eager)
        fastres.accelerate(model)
        torch.testing.assert_close(model(x), eager)
        torch.testing.assert_close(model.layer2(torch.ones(1, 16, 4, 4)).shape[1], 32)
    fastres.restore(model)
    assert type(model.layer2) is nn.Sequential


def test_single_convolution(x):
    conv = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        eager = conv(x)
        torch.testing.assert_close(fastres.accelerate(conv)(x), eager)
        assert runs_fused(conv, x)
    assert isinstance(conv, nn.Conv2d)


def test_nothing_to_fuse(x):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 24, 4))
    assert type(fastres.accelerate(model)) is nn.Sequential


def test_memory_is_freed_without_the_garbage_collector(x):
    model = fastres.accelerate(randomised(TinyNet()))
    with torch.no_grad():
        model(x)
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(model)
        del model
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("wrong", [None, torch.relu, {}])
def test_not_a_module(wrong):
    for function in (fastres.accelerate, fastres.explain, fastres.freeze, fastres.restore):
        with pytest.raises(
            TypeError, match=rf"model must be an nn.Module, got {type(wrong).__name__}"
        ):
            function(wrong)


def test_unknown_staleness(model):
    with pytest.raises(ValueError, match="staleness must be one of content, version, got 'never'"):
        fastres.accelerate(model, staleness="never")


# ---- when it runs fused --------------------------------------------------------------------------


def test_runs_fused_wherever_no_gradient_is_needed(model, fused, x):
    eager = model(x).detach()
    with torch.no_grad():
        assert runs_fused(fused, x)
    with torch.inference_mode():
        out = fused(x)
        assert out.is_inference()
    fused.requires_grad_(False)
    out = fused(x)
    torch.testing.assert_close(out, eager)
    assert not out.requires_grad
    assert not out.is_inference()
    version = out._version  # a normal tensor has one
    out += 1
    assert out._version == version + 1
    assert fused(x.clone().requires_grad_()).requires_grad


def test_training_mode_is_eagers(model, fused, x):
    model.train()
    fused.train()
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)
    for a, b in zip(fused.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))
        model.eval()
        fused.eval()
        torch.testing.assert_close(fused(x), model(x))


def test_mixed_training_modes(model, fused, x):
    for m in (model, fused):
        m.layer1[0].bn1.train()
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))
    statistics = [m.layer1[0].bn1.running_mean for m in (model, fused)]
    torch.testing.assert_close(*statistics)
    assert runs_fused(fused, x)
    assert reasons(fused)["layer1.0.conv1"] == "its BatchNorm is in training mode"
    assert ops(fused) == {"conv_max_pool": 1, "conv_bn_act": 2, "grouped_bottleneck": 2}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_dtypes(dtype, model, x, assert_accurate):
    exact = copy.deepcopy(model).to(dtype).double()(x.to(dtype).double()).detach()
    model.to(dtype)
    with torch.no_grad():
        eager = model(x.to(dtype))
        out = fastres.accelerate(model)(x.to(dtype))
        assert runs_fused(model, x.to(dtype))
    assert_accurate(out, eager, exact, magnitude=exact.abs)


def test_reduced_model_with_float_batchnorm(model, x):
    model.to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    with torch.no_grad():
        eager = model(x.bfloat16())
        out = fastres.accelerate(model)(x.bfloat16())
    assert out.dtype == eager.dtype
    torch.testing.assert_close(out, eager, rtol=0.05, atol=0.05)


def test_double_runs_as_it_was(model, fused, x):
    with torch.no_grad():
        assert torch.equal(fused.double()(x.double()), model.double()(x.double()))
    assert "no kernel for torch.float64" in str(fastres.explain(fused))


def test_wrong_dtype_is_eagers_error(fused, x):
    with torch.no_grad(), pytest.raises(RuntimeError, match="expected scalar type Double"):
        fused(x.double())


def test_unbatched_input(x):
    model = fastres.accelerate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    with torch.no_grad():
        torch.testing.assert_close(model(x[0]), model(x)[0])


def test_convolution_of_an_unbatched_value():
    model = Function(lambda m, x: m.conv(x.squeeze(0)), conv=nn.Conv2d(3, 4, 3))
    fastres.accelerate(model)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 8, 8)).shape == (4, 6, 6)


def test_integer_images(assert_accurate):
    model = Function(lambda m, x: m.conv(x / 255), conv=nn.Conv2d(3, 4, 3))
    x = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        eager = model(x)
        fastres.accelerate(model)
        assert runs_fused(model, x)
        torch.testing.assert_close(model(x), eager)


def test_empty_batch(fused):
    with torch.no_grad():
        assert fused(torch.empty(0, 3, 32, 32)).shape == (0, 5)


def test_nan_image(model, fused, x):
    x[0, 0, 3, 3] = float("nan")
    with torch.no_grad():
        assert torch.equal(fused(x).isnan(), model(x).isnan())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, model, fused, x):
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        eager, out = model(x), fused(x)
    assert out.dtype == eager.dtype == dtype
    exact = copy.deepcopy(model).double()(x.double())
    assert (out - exact).norm() <= 2 * (eager - exact).norm()
    with torch.no_grad():
        assert fused(x).dtype == torch.float32


def test_autocast_shortcut_of_the_input():
    """The shortcut is float32 where the convolution's output is bfloat16: eager promotes."""
    model = Function(lambda m, x: F.relu(m.conv(x) + x), conv=nn.Conv2d(8, 8, 3, padding=1))
    x = torch.randn(1, 8, 6, 6)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        eager = model(x)
        out = fastres.accelerate(model)(x)
    assert out.dtype == eager.dtype


def test_reference_backend(model, fused, x):
    backend = fastres.get_backend()
    with torch.no_grad():
        expected = fused(x)
        fastres.set_backend("reference")
        try:
            torch.testing.assert_close(fused(x), expected)
        finally:
            fastres.set_backend(backend)
        torch.testing.assert_close(fused(x), expected)


def test_two_threads(x):
    """The first calls, which trace and pack, and later ones, from two threads at once."""
    models = [fastres.accelerate(randomised(TinyNet())) for _ in range(3)]
    with torch.no_grad():
        expected = [copy.deepcopy(fastres.restore(copy.deepcopy(m)))(x) for m in models]
    failures: list[object] = []

    def call() -> None:
        try:
            with torch.no_grad():
                for _ in range(3):
                    for m, out in zip(models, expected, strict=True):
                        torch.testing.assert_close(m(x), out)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
