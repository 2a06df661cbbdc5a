"""freeze and accelerate on cuDNN: what is fused, and what runs as it was."""

from __future__ import annotations

import pytest
import torch
from nets import runs_fused
from network_on_kernels import check_inference, small_resnext

import fastres
from fastres import _library


def test_inference(assert_accurate):
    check_inference(assert_accurate)


@pytest.fixture
def _auto(monkeypatch) -> None:
    """The kernels of a GPU that were chosen, and not asked for."""
    monkeypatch.setitem(_library._state.kernels, torch.get_default_device().type, "cudnn")
    monkeypatch.setattr(_library._state, "backend", "auto")


@pytest.mark.usefixtures("_auto")
def test_an_accelerated_model_runs_as_it_was():
    model, x = fastres.accelerate(small_resnext()), torch.randn(2, 3, 19, 14)
    assert "on a GPU it runs as it was" in str(fastres.explain(model))
    for mode in (model.train(), model.eval()):
        assert not runs_fused(mode, x)
    assert runs_fused(fastres.freeze(model), x)


def test_training_runs_as_it_was(monkeypatch):
    monkeypatch.setitem(_library._state.kernels, torch.get_default_device().type, "cudnn")
    monkeypatch.setattr(_library._state, "backend", "cudnn")
    model, x = fastres.accelerate(small_resnext()), torch.randn(2, 3, 19, 14)
    with torch.profiler.profile() as profile:
        model(x).sum().backward()
    assert not any("fastres::" in event.name for event in profile.events())
    assert runs_fused(model.eval(), x)
