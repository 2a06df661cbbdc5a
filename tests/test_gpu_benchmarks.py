"""What the GPU benchmarks say where there is no GPU, and what they run where there is one."""

import sys
from pathlib import Path

import affine_case
import pytest
import torch
from torch import nn

import fastres

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import gpu, gpu_grouped, gpu_model, gpu_training, shapes  # noqa: E402


def test_without_a_gpu_the_gpu_benchmark_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    gpu.main()
    assert "no GPU" in capsys.readouterr().out


def test_what_the_gpu_benchmark_runs_is_checked_and_tabulated():
    shape = shapes.ConvShape(8, 8, 3, 1, 1, 2, 5, 5, residual=False, act="relu")
    before = fastres.get_backend()
    calls = gpu.layer_calls(shape, 1, "cpu", ["reference"])
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        calls |= gpu.inference_calls(model, torch.randn(1, 3, 8, 8), ["reference"])
        times = gpu.in_turn(calls, 2, timer=lambda call: 2.0 if call() is not None else 0.0)
    fastres.set_backend(before)
    assert times == {"eager": 2.0, "reference": 2.0, "reference, accelerate": 2.0}
    assert "| layer | 2.000 (1.00x) | 2.000 (1.00x) " in gpu.table("Title", {"layer": times})[4]


def test_training_steps_of_the_gpu_benchmark_train():
    before = fastres.get_backend()
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )
    calls = gpu.training_calls(model, torch.randn(4, 3, 8, 8), ["reference", before])
    losses = {name: [float(call()) for _ in range(20)] for name, call in calls.items()}
    fastres.set_backend(before)
    assert list(losses) == ["eager", "reference", before]
    for each in losses.values():
        assert each[-1] < each[0]


@pytest.mark.skipif(not gpu_model.cuda_emulation.HAS_NVCC, reason="needs nvcc")
def test_the_gpu_model_counts_what_a_layer_does():
    shape = shapes.ConvShape(128, 128, 3, 1, 1, 32, 16, 16, residual=True, act="relu")
    counted = gpu_model.count(shape)
    assert counted.kernel == "fastres_grouped_conv_4_f16"
    assert 1.0 <= counted.bytes / counted.compulsory <= 1.15
    assert 0.25 <= counted.useful / counted.issued < 0.5
    assert counted.excess_wavefronts <= 0.05
    assert counted.store_sectors == 16
    block = shapes.BottleneckShape(32, 32, 64, 1, 8, 16, 16)
    assert gpu_model.fits_one_kernel(block)
    counted = gpu_model.count_block(block)
    assert counted.kernel == "fastres_grouped_bottleneck_4_f16"
    assert 1.0 <= counted.bytes / counted.compulsory <= 1.15
    assert 0.25 <= counted.useful / counted.issued < 1
    assert counted.excess_wavefronts <= 0.05
    assert not gpu_model.fits_one_kernel(shapes.BottleneckShape(64, 64, 64, 1, 1, 16, 16))


@pytest.mark.skipif(not gpu_model.cuda_emulation.HAS_NVCC, reason="needs nvcc")
@pytest.mark.parametrize(
    ("channels", "kernel", "residual", "passes"),
    [
        (32, 3, False, False),
        (32, 1, False, False),
        (32, 1, False, True),
        (32, 1, True, False),
        (3, 7, False, False),
    ],
)
def test_the_gpu_model_knows_what_training_moves(channels, kernel, residual, passes):
    padding = kernel // 2
    shape = shapes.ConvShape(
        channels, 64, kernel, 1, padding, 1, 40, 40, residual=residual, act="relu"
    )
    device = gpu_model.cuda_emulation.Device(check=False, counters=True)
    gpu_training.run_training(shape, 1, device, passes)
    moved = sum(s["dram_read_bytes_min"] + s["dram_write_bytes_min"] for s in device.stats)
    fused, apart = gpu_training.Traffic(), gpu_training.Traffic()
    gpu_training.add_layer(fused, apart, shape, 1, device.scratch_bytes, 0, passes)
    weights = fused.bytes["weights"]
    ends = fused.bytes["stem's end"] + fused.bytes["max-pool"]
    ends += fused.bytes["block's end"] if residual else 0  # an operator of its own
    # The emulated weights are of two bytes.
    assert moved == pytest.approx(fused.total - ends - weights / 2, rel=0.03)
    assert fused.total < apart.total


@pytest.mark.skipif(not gpu_model.cuda_emulation.HAS_NVCC, reason="needs nvcc")
@pytest.mark.parametrize(("shortcut", "passes"), [("none", 3), ("identity", 4)])
def test_the_gpu_model_knows_what_the_end_of_a_block_moves(shortcut, passes):
    inputs = affine_case.make_inputs((2, 64, 32, 32), shortcut, torch.float16)
    device = gpu_model.cuda_emulation.Device(check=False, counters=True)
    device.affine_add_act_backward(inputs.y.clone(), *inputs, "relu", 0.0, True)
    moved = sum(s["dram_read_bytes_min"] + s["dram_write_bytes_min"] for s in device.stats)
    scratch = 2 * device.scratch_bytes
    assert moved == pytest.approx(passes * inputs.y.nbytes + scratch, rel=0.03)


@pytest.mark.parametrize("model", shapes.DEFAULT_MODELS)
def test_the_gpu_model_counts_every_layer_of_a_training_step(model):
    fused, apart = gpu_training.training_step(model, 32)
    convolutions = len(shapes.conv_calls(model))
    for side in (fused, apart):
        assert len(side.calls) == 3 * convolutions - 1  # the image has no gradient
        assert side.total > sum(moved for _, moved in side.calls)
    assert fused.total < 0.6 * apart.total
    # Sixteen shortcuts start at what the pool and fifteen blocks give.
    assert apart.bytes["shortcut's gradient"] == 3 * fused.bytes["shortcut's gradient"]


@pytest.mark.skipif(not gpu_model.cuda_emulation.HAS_NVCC, reason="needs nvcc")
def test_narrow_groups_take_the_fewest_instructions_on_tensor_cores():
    counts = {form: gpu_grouped.count(form, channels=64, size=16) for form in gpu_grouped.FORMS}
    assert all(each["error"] < 1e-3 for each in counts.values())
    instructions = [each["instructions"] for each in counts.values()]
    assert instructions == sorted(instructions)
    assert counts["tensor cores"]["error"] < counts["half2"]["error"]
