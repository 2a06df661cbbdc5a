"""What holds for every constructor: signature, docstring, figures, copies, TorchScript."""

import inspect
import pickle
import re

import pytest
import torch

import fastres
from fastres.accelerate import is_accelerated
from fastres.models import CONSTRUCTORS, imagenet
from fastres.report.summary import summarize

OWN = sorted(set(CONSTRUCTORS) - set(imagenet.CONSTRUCTORS))
_FIGURES = re.compile(r"accelerated: ([\d.]+) M parameters, ([\d.]+) GMACs\s+(?:at|for a) (\d+)x")


def _meta(name):
    with torch.device("meta"):
        return CONSTRUCTORS[name]()


@pytest.mark.parametrize("name", OWN)
def test_the_docstring_has_the_networks_figures(name):
    doc = CONSTRUCTORS[name].__doc__
    parameters, gmacs, size = _FIGURES.search(doc).groups()
    summary = summarize(_meta(name), (1, 3, int(size), int(size)))
    for text, value in ((parameters, summary.parameters / 1e6), (gmacs, summary.macs / 1e9)):
        assert round(value, len(text.partition(".")[2])) == float(text)
    other = re.search(r"as of\s+:func:`(\w+)`", doc)
    full = CONSTRUCTORS[other.group(1)].__doc__ if other else doc
    assert "https://arxiv.org/abs/" in full
    assert "[N, 3, " in full
    assert "Args:" in full


@pytest.mark.parametrize("name", OWN)
def test_constructors_take_keywords_alone_and_are_found_by_name(name):
    construct = CONSTRUCTORS[name]
    parameters = inspect.signature(construct, eval_str=True).parameters
    assert "weights" in parameters
    assert parameters["weights"].default is None
    assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in parameters.values())
    assert all(p.annotation is not p.empty for p in parameters.values())
    assert pickle.loads(pickle.dumps(construct)) is getattr(fastres.models, name) is construct
    assert name in fastres.models.__all__


@pytest.mark.parametrize(
    "name",
    ["resnet50_v1", "resnet18_v2", "small_resnet18", "resnext18", "densenet121", "keras_resnext50"],
)
def test_weights_come_from_a_file(name, tmp_path):
    model = CONSTRUCTORS[name](num_classes=3).eval()
    assert is_accelerated(model)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "checkpoint.pth")
    loaded = CONSTRUCTORS[name](num_classes=3, weights=tmp_path / "checkpoint.pth").eval()
    copied = pickle.loads(pickle.dumps(model))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(loaded(x), expected)
        assert torch.equal(copied(x), expected)
    with pytest.raises((RuntimeError, ValueError), match=r"size mismatch|num_classes: got 4"):
        CONSTRUCTORS[name](num_classes=4, weights=tmp_path / "checkpoint.pth")


@pytest.mark.parametrize("name", ["resnet50_v2", "small_resnet50", "resnext50", "densenet121"])
def test_frozen_networks_are_torchscript(name):
    """What a C++ program loads."""
    model = CONSTRUCTORS[name]().eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        scripted = torch.jit.script(fastres.freeze(model))
        assert "fastres::" in str(scripted.inlined_graph)
        torch.testing.assert_close(scripted(x), model(x), rtol=1e-4, atol=1e-4)
