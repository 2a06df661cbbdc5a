"""The benchmarks: their shapes, their validation, and what they write."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import child_process
import pytest
import torch
import torchvision
from torch import nn

import fastres
from fastres import _library

ROOT = Path(__file__).resolve().parent.parent
PACKAGE_ROOT = Path(fastres.__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import (  # noqa: E402
    contestants,
    layers,
    memory,
    peers,
    roofline,
    shapes,
    storage,
    threads,
    train_peers,
)


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "wide_resnet50_2"])
def test_the_shapes_hold_all_of_a_networks_operations(name):
    convs = [call for call in shapes._calls(name) if isinstance(call.module, nn.Conv2d)]
    macs = sum(shapes._conv_shape(call).flops(1) for call in convs) / 2
    classifier = (512 if name == "resnet18" else 2048) * 1000
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["_ops"]
    assert (macs + classifier) / 1e9 == pytest.approx(published, abs=1e-3)


def test_a_bottleneck_has_the_operations_of_its_convolutions():
    blocks = [call for call in shapes._calls("resnext50_32x4d") if call.name == "0"]
    blocks = [call for call in blocks if hasattr(call.module, "conv3")]
    assert len(blocks) == 4
    for block in blocks:
        members = set(block.module.modules())
        convs = [
            shapes._conv_shape(call).flops(3)
            for call in shapes._calls("resnext50_32x4d")
            if call.module in members and isinstance(call.module, nn.Conv2d)
        ]
        assert shapes._bottleneck_shape(block).flops(3) == sum(convs)


def test_the_bytes_are_those_that_must_move():
    conv = shapes.ConvShape(8, 16, 3, 2, 1, 2, 9, 7, residual=True, act="relu")
    assert conv.bytes(3) == 4 * (3 * 8 * 9 * 7 + 16 * 4 * 9 + 2 * 3 * 16 * 5 * 4)
    block = shapes.BottleneckShape(16, 8, 32, 2, 2, 9, 7)
    weights = 16 * 8 + 8 * 4 * 9 + 8 * 32 + 16 * 32
    assert block.bytes(3) == 4 * (3 * 16 * 9 * 7 + weights + 3 * 32 * 5 * 4)


def test_the_layers_of_a_block_have_their_place():
    ends = [shape for shape in shapes.conv_shapes("resnet18") if shape.residual]
    assert {shape.act for shape in ends} == {"relu"}
    assert {shape.kernel for shape in ends} == {3}
    projections = [shape for shape in shapes.conv_shapes("resnet50") if shape.act == "none"]
    assert len(projections) == 4
    assert {shape.kernel for shape in projections} == {1}
    names = [str(shape) for shape in shapes.conv_shapes(*shapes.MODELS)]
    assert len(set(names)) == len(names)


CONVS = {
    "dense 3x3": shapes.ConvShape(16, 32, 3, 1, 1, 1, 9, 7, residual=False, act="relu"),
    "grouped": shapes.ConvShape(8, 8, 3, 2, 1, 2, 9, 9, residual=False, act="relu"),
    "end of a block": shapes.ConvShape(6, 8, 1, 1, 0, 1, 7, 5, residual=True, act="relu"),
    "projection": shapes.ConvShape(6, 8, 1, 2, 0, 1, 7, 5, residual=False, act="none"),
}
BOTTLENECKS = {
    "dense": shapes.BottleneckShape(64, 16, 64, 1, 1, 9, 7),
    "grouped": shapes.BottleneckShape(32, 16, 32, 1, 4, 9, 7),
    "projection": shapes.BottleneckShape(16, 8, 32, 2, 1, 9, 7),
}


@pytest.mark.parametrize("name", CONVS)
@torch.inference_mode()
def test_convolutions_validate(name):
    layers.conv_layer(CONVS[name], batch=2).validate()
    layers.conv_layer(CONVS[name], batch=2, live=True).validate()


@pytest.mark.parametrize("name", BOTTLENECKS)
@torch.inference_mode()
def test_bottlenecks_validate(name):
    layers.bottleneck_layer(BOTTLENECKS[name], batch=2).validate()
    layers.bottleneck_layer(BOTTLENECKS[name], batch=2, live=True).validate()


@torch.inference_mode()
def test_pools_validate():
    (shape,) = shapes.pool_shapes(*shapes.MODELS)
    assert str(shape) == "64_3x3_s2_112x112"
    layer = layers.pool_layer(shape, batch=2)
    layer.validate()
    assert shape.bytes(2) == 4 * 2 * 64 * (112 * 112 + 56 * 56)
    assert layer.call("fastres-direct")().shape == (2, 64, 56, 56)


@torch.inference_mode()
def test_a_wrong_result_is_not_timed():
    layer = layers.conv_layer(CONVS["grouped"], batch=1)
    wrong = replace(layer, fastres={"direct": lambda: layer.eager() * 1.001})
    with pytest.raises(AssertionError, match=r"direct: error .* against float64, eager's is"):
        wrong.validate()


def test_winograd_is_timed_where_it_can_be_used():
    assert layers.implementations(CONVS["dense 3x3"]) == [
        "eager",
        "fastres-direct",
        "fastres-winograd",
    ]
    assert layers.implementations(CONVS["grouped"]) == ["eager", "fastres-direct"]
    assert layers.implementations(BOTTLENECKS["projection"]) == ["eager", "fastres-direct"]


def _run(tmp_path, *arguments):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=child_process.environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_records_how_good_the_machine_is_used(tmp_path):
    output = tmp_path / "benchmark.json"
    options = [f"--benchmark-json={output}", f"--benchmark-storage={tmp_path}", "--threads", "1"]
    options += ["--benchmark-max-time=0.01", "--models", "resnext50_32x4d", "-k", "g32_7x7 or pool"]
    result = _run(tmp_path, "benchmarks", *options)
    assert result.returncode == 0, result.stdout
    runs = json.loads(output.read_text())["benchmarks"]
    assert {run["name"].partition("[")[0] for run in runs} == {
        "test_avg_pool_linear",
        "test_bottleneck_chain",
        "test_conv_bn_act",
        "test_conv_max_pool",
        "test_conv_stats",
        "test_conv_stats_backward",
        "test_grouped_bottleneck",
        "test_live_bottleneck",
        "test_live_bottleneck_chain",
        "test_live_conv_bn_act",
        "test_max_pool",
    }
    assert len({run["group"] for run in runs}) == 11
    multiplying = [run for run in runs if not run["group"].startswith("max_pool")]
    assert all(run["extra_info"]["gflops"] > 0 for run in multiplying)
    assert all(run["extra_info"]["gbytes_per_s"] > 0 for run in runs)
    if hasattr(_library.diagnostics(), "fma_peak_gflops"):
        assert all(0 < run["extra_info"]["percent_of_peak"] < 200 for run in multiplying)
    assert all(run["extra_info"]["threads"] == 1 for run in runs)


# ---- peers ---------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6))\n"
    )
    return f"{path}:net"


@pytest.fixture
def some_peers(monkeypatch):
    """Eager, fastres, one peer that is missing and one that is wrong."""

    def absent(model, x, threads):
        import no_such_runtime  # noqa: F401

    chosen = ("eager", "eager channels_last", "fastres", "fastres.freeze")
    builders = {name: contestants.BUILDERS[name] for name in chosen}
    builders |= {"absent": absent, "wrong": lambda model, x, threads: lambda: model(x) + 1}
    for module in (contestants, peers):
        monkeypatch.setattr(module, "BUILDERS", builders)


def test_peers_are_compared_and_missing_ones_named(model, some_peers, tmp_path, capsys):
    threads = torch.get_num_threads()
    paths = {name: tmp_path / f"peers.{name}" for name in ("json", "markdown", "png")}
    argv = ["--models", model, "--batch", "1", "2", "--rounds", "1", "--threads", str(threads)]
    argv += ["--json", str(paths["json"]), "--markdown", str(paths["markdown"])]
    assert peers.main([*argv, "--plot", str(paths["png"])]) == 0
    captured = capsys.readouterr()
    assert "without absent: ModuleNotFoundError: No module named 'no_such_runtime'" in captured.err
    assert "without wrong: its logits differ from eager's by" in captured.err
    report = json.loads(paths["json"].read_text())
    assert [comparison["batch"] for comparison in report["comparisons"]] == [1, 2]
    for comparison in report["comparisons"]:
        assert set(comparison["skipped"]) == {"absent", "wrong"}
        assert set(comparison["milliseconds"]) == {
            "eager",
            "eager channels_last",
            "fastres",
            "fastres.freeze",
        }
    table = paths["markdown"].read_text()
    header = "| model | batch | eager | eager channels_last | fastres | fastres.freeze |"
    assert table.splitlines()[0] == header
    assert paths["png"].read_bytes().startswith(b"\x89PNG")


def test_peers_fail_where_fastres_is_wrong(model, some_peers, monkeypatch):
    monkeypatch.setitem(peers.BUILDERS, "fastres", peers.BUILDERS["wrong"])
    threads = str(torch.get_num_threads())
    argv = ["--models", model, "--batch", "1", "--rounds", "1", "--threads", threads]
    assert peers.main([*argv, "--only", "fastres"]) == 1


def test_peers_refuse_what_they_do_not_know(capsys):
    threads = str(torch.get_num_threads())
    assert peers.main(["--models", "absent.py:net", "--threads", threads]) == 2
    assert "there is no file 'absent.py'" in capsys.readouterr().err


# ---- roofline ------------------------------------------------------------------------------------


@pytest.mark.skipif("cpu" not in fastres.available_backends(), reason="needs the native library")
def test_the_share_of_each_layer_is_told(tmp_path, capsys):
    file = tmp_path / "roofline.json"
    arguments = ["--models", "resnet18", "--batch", "1", "--rounds", "1", "--json", str(file)]
    assert roofline.main(arguments) == 0
    record = json.loads(file.read_text())
    kinds = {layer["kind"] for layer in record["layers"]}
    assert kinds == {"7x7, stride 2", "3x3", "3x3, stride 2", "1x1, stride 2"}
    for layer in record["layers"]:
        assert 0 < layer["share"] * layer["seconds"] < 1  # the limit
    assert "GFLOP/s of fused multiply-adds" in capsys.readouterr().out


@pytest.fixture
def keep_threads():
    """For commands that set how many there are."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# ---- threads -------------------------------------------------------------------------------------


def test_threads(model, keep_threads, tmp_path, capsys):
    file = tmp_path / "threads.json"
    options = ["--batch", "1", "--rounds", "2", "--only", "fastres", "--json", str(file)]
    assert threads.main(["--models", model, *options]) == 0
    (scaling,) = json.loads(file.read_text())["threads"]
    assert scaling["contestant"] == "fastres"
    assert scaling["one"] > 0 < scaling["several"]
    assert f"{scaling['one'] / scaling['several']:.2f}" in capsys.readouterr().out
    assert threads.main(["--models", "absent.py:net"]) == 2


# ---- storage -------------------------------------------------------------------------------------


def test_dtypes_are_timed_beside_each_other(model, keep_threads, tmp_path, capsys):
    file = tmp_path / "storage.json"
    options = ["--batch", "1", "--rounds", "1", "--only", "fastres", "--json", str(file)]
    assert storage.main(["--models", model, *options]) == 0
    (times,) = json.loads(file.read_text())["storage"]
    assert list(times["milliseconds"]) == ["float32", "bfloat16", "float16"]
    assert all(ms > 0 for ms in times["milliseconds"].values())
    half, whole = times["milliseconds"]["float16"], times["milliseconds"]["float32"]
    assert f"{half:.1f} ({half / whole:.2f})" in capsys.readouterr().out
    assert storage.main(["--models", "absent.py:net"]) == 2


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_measured_in_a_process_of_its_own(model, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PACKAGE_ROOT), str(ROOT)]))
    assert memory.main(["--models", model, "--batch", "1", "--only", "fastres"]) == 0
    header, _, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["model", "batch", "fastres,", "MiB"]
    assert 0 < int(row.split()[-1]) < 1000
    halved = ["--models", model, "--batch", "1", "--only", "fastres", "--dtype", "bfloat16"]
    assert memory.main(halved) == 0
    assert 0 < int(capsys.readouterr().out.split()[-1]) < 1000
    assert memory.main(["--models", "absent.py:net", "--batch", "1", "--only", "fastres"]) == 0
    captured = capsys.readouterr()
    assert "without fastres: MODEL: there is no file 'absent.py'" in captured.err
    assert captured.out.splitlines()[-1].split()[-1] == "-"


def test_training_steps_are_compared(tmp_path, capsys):
    json_file, markdown = tmp_path / "steps.json", tmp_path / "steps.md"
    options = ["--rounds", "1", "--threads", "1", "--batch", "2", "--size", "32", "--no-layer"]
    names = ["eager", "eager channels_last", "fastres", "fastres save", "fastres bf16"]
    cases = ["--cases", "resnet18, 3x3 stem", "--only", *names]
    files = ["--json", str(json_file), "--markdown", str(markdown)]
    assert train_peers.main([*options, *cases, *files]) == 0
    (step,) = json.loads(json_file.read_text())["steps"]
    assert list(step["milliseconds"]) == names
    assert step["saved"]["fastres save"] < step["saved"]["fastres"] < step["saved"]["eager"]
    assert step["skipped"] == {}
    assert "best peer / fastres" in markdown.read_text()
    assert "2 threads" not in capsys.readouterr().out


def test_a_contestant_that_computes_something_else_is_named(monkeypatch):
    monkeypatch.setattr(train_peers, "_MAX_DIFFERENCE", 0.0)
    options = ["--rounds", "1", "--batch", "2", "--size", "32", "--no-layer"]
    assert train_peers.main([*options, "--cases", "resnet18, 3x3 stem", "--only", "eager"]) == 1
