"""freeze and accelerate on cuDNN: what is fused, and what runs as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nets import runs_fused
from network_on_kernels import check_inference, small_resnext

import fastres
from fastres import _library, dynamo


def test_inference(assert_accurate):
    check_inference(assert_accurate)


@pytest.fixture
def choose(monkeypatch) -> Callable[[str], None]:
    """Says what was asked for, "auto" or "cudnn", where cuDNN's are the kernels of the device."""
    monkeypatch.setitem(_library._state.kernels, torch.get_default_device().type, "cudnn")
    return lambda name: monkeypatch.setattr(_library._state, "backend", name)


def test_an_accelerated_model_runs_as_it_was(choose):
    choose("auto")
    model, x = fastres.accelerate(small_resnext()), torch.randn(2, 3, 19, 14)
    assert "on a GPU it runs as it was" in str(fastres.explain(model))
    for mode in (model.train(), model.eval()):
        assert not runs_fused(mode, x)
    assert not runs_fused(torch.compile(model, backend=dynamo.fastres_backend), x)
    assert runs_fused(fastres.freeze(model), x)


def test_training_runs_as_it_was(choose):
    choose("cudnn")
    model, x = fastres.accelerate(small_resnext()), torch.randn(2, 3, 19, 14)
    assert "on a GPU it trains as it was" in str(fastres.explain(model))
    with torch.profiler.profile() as profile:
        model(x).sum().backward()
    assert not any("fastres::" in event.name for event in profile.events())
    assert runs_fused(model.eval(), x)


@pytest.mark.parametrize(
    ("loaded", "from_python"), [(("cudnn", "triton"), True), (("cudnn", "cuda", "triton"), False)]
)
def test_what_cudnn_has_not_is_the_next_backend_s(monkeypatch, loaded, from_python):
    monkeypatch.setattr(_library._state, "loaded", dict.fromkeys(loaded, ""))
    for name in ("conv_stats", "affine_add_act"):
        assert (_library._python_kernel("cudnn", name) is not None) == from_python
