"""What leaves the training machine: TorchScript, torch.export, AOTInductor, ONNX."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import fastres
from fastres import _library

RUN = """
import sys, torch
assert "fastres" not in sys.modules
if sys.argv[3]:
    torch.ops.load_library(sys.argv[3])
model = torch.jit.load(sys.argv[1])
x, expected = torch.load(sys.argv[2])
with torch.no_grad():
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
"""
BATCH = {0: torch.export.Dim("batch")}


def _network():
    """A stem, a bottleneck with projection and one without, and a head; with statistics."""
    torch.manual_seed(0)
    model = nn.Sequential(
        fastres.nn.ConvBNAct(3, 16, 7, stride=2),
        nn.MaxPool2d(3, 2, 1),
        fastres.nn.Bottleneck(
            16, 16, stride=2, downsample=fastres.nn.projection(16, 64, 2), groups=4, base_width=32
        ),
        fastres.nn.Bottleneck(64, 16, groups=4, base_width=32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    model(torch.randn(8, 3, 48, 48))
    return model.eval()


@pytest.fixture
def model():
    return fastres.accelerate(_network())


@pytest.fixture
def x():
    return torch.randn(3, 3, 40, 56, generator=torch.Generator().manual_seed(1))


def _run_elsewhere(scripted, x, expected, folder, library=""):
    """Loads and runs a scripted model in a process that has not imported fastres."""
    scripted.save(folder / "model.pt")
    torch.save((x, expected), folder / "case.pt")
    files = [str(folder / "model.pt"), str(folder / "case.pt"), str(library)]
    # Not from the checkout, and not on its path: there, torch alone has to do.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", RUN, *files]
    ran = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


@torch.no_grad()
def test_a_scripted_model_needs_torch_alone(x, tmp_path):
    model = fastres.models.resnet18(num_classes=10).eval()
    _run_elsewhere(torch.jit.script(model), x, model(x), tmp_path)


@torch.no_grad()
def test_a_scripted_frozen_model_needs_torch_and_the_library(model, x, tmp_path):
    if not _library.has_kernels("cpu"):
        pytest.skip("no native library")
    scripted = torch.jit.script(fastres.freeze(model))
    assert "fastres::bottleneck_chain" in str(scripted.graph)
    library = _library._state.loaded["cpu"]
    _run_elsewhere(scripted, x, model(x), tmp_path, library)


@pytest.mark.slow
@torch.no_grad()
def test_an_aotinductor_package_takes_any_batch(model, x, tmp_path):
    frozen = fastres.freeze(model, x)
    program = torch.export.export(frozen, (x,), dynamic_shapes=(BATCH,))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "m.pt2"))
    loaded = torch._inductor.aoti_load_package(path)
    for batch in (1, 3, 5):
        images = torch.randn(batch, *x.shape[1:])
        torch.testing.assert_close(loaded(images), frozen(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["accelerated", "unpacked"])
@torch.no_grad()
def test_onnx_has_standard_operators_and_runs_in_onnx_runtime(form, model, x, tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = str(tmp_path / "model.onnx")
    expected = _network()(x)
    assert (model(x) - expected).norm() < 1e-5 * expected.norm()  # it has been run fused before
    if form == "unpacked":
        model = fastres.unpack(fastres.freeze(model, x))
    torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=(BATCH,), verbose=False)
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3, 5):
        images = torch.randn(batch, *x.shape[1:])
        (out,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), model(images), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_onnx_of_a_frozen_model_says_what_to_export_instead(model, x):
    pytest.importorskip("onnxscript")
    frozen = fastres.freeze(model, x)
    with pytest.raises(Exception, match=r"give fastres\.unpack\(frozen\), or the model"):
        torch.onnx.export(frozen, (x,), dynamo=True, verbose=False)
    torch.export.export(frozen, (x,))  # which is no ONNX
