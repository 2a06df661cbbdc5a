"""explain: what it says, in code and in print."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from nets import Function, TinyNet, conv_bn, randomised
from torch import nn

import fastres
from fastres import _library
from fastres.rewrite.fuse import Fused, Left


def test_report_of_a_network():
    model = randomised(TinyNet())
    report = fastres.explain(model)
    assert report.model == "TinyNet"
    assert report.left == []
    assert report.fused[0] == Fused(
        "conv_max_pool", ("conv1", "bn1", ":relu", ":max_pool2d"), "3x3, stride 2, relu, max-pool"
    )
    assert report.fused[-1].modules == (
        *("layer2.1.conv1", "layer2.1.bn1", "layer2.1.act"),
        *("layer2.1.conv2", "layer2.1.bn2", "layer2.1.act"),
        *("layer2.1.conv3", "layer2.1.bn3", "layer2.1.downsample.0", "layer2.1.downsample.1"),
        *("layer2.1:iadd", "layer2.1.act"),
    )
    text = str(report)
    assert text.startswith(
        "TinyNet: fuses 3 conv_bn_act, 1 conv_max_pool, 2 grouped_bottleneck; leaves 0"
    )
    assert "layer2.0: conv1, bn1, act, conv2, bn2, act, conv3, bn3, iadd, act" in text
    assert "1x1, 3x3, 4 groups, 1x1, relu" in text
    assert "not accelerated" in text
    assert "not accelerated" not in str(fastres.explain(fastres.accelerate(model)))


@pytest.mark.skipif("cpu" not in fastres.available_backends(), reason="needs the native library")
@pytest.mark.parametrize(
    ("isa", "spatial", "dense"),
    [
        ("amx", "Winograd on matrix tiles", "matrix tiles"),
        ("portable", "Winograd", "register tiles"),
    ],
)
def test_kernels(isa, spatial, dense):
    native = _library.diagnostics()
    if isa not in native.supported_isas():
        pytest.skip(f"this processor has no {isa}")
    model = nn.Sequential(
        conv_bn(3, 256), conv_bn(256, 256), conv_bn(256, 256, stride=2, groups=256),
        conv_bn(256, 256, groups=32), conv_bn(256, 1024, 1), nn.AvgPool2d(2),
        conv_bn(1024, 1024, 1),
    ).eval()  # fmt: skip
    native.force_isa(isa)
    try:
        report = fastres.explain(model, input_shape=(1, 3, 28, 28))
    finally:
        native.force_isa("auto")
    assert report.kernels == {
        "0.0": "register tiles",  # of three channels
        "1.0": spatial,
        "2.0": "channel lanes",
        "3.0": "grouped lanes",
        "4.0": dense,
        "6.0": "pixel lanes",
    }
    assert report.fused[1].detail == f"3x3; {spatial}"
    assert fastres.explain(model).kernels == {}


@pytest.mark.skipif("cpu" not in fastres.available_backends(), reason="needs the native library")
@pytest.mark.parametrize("isa", ["amx", "avx2"])
def test_kernels_of_a_bfloat16_model(isa):
    """Products of bfloat16 values are worth tiles where those of float32 are not."""
    native = _library.diagnostics()
    if isa not in native.supported_isas():
        pytest.skip(f"this processor has no {isa}")
    model = nn.Sequential(
        conv_bn(256, 256), conv_bn(256, 256, groups=32), conv_bn(256, 256, groups=256)
    ).eval()
    native.force_isa(isa)
    try:
        report = fastres.explain(model.bfloat16(), input_shape=(1, 256, 7, 7))
    finally:
        native.force_isa("auto")
    expected = {
        "amx": ("matrix tiles", "matrix tiles", "channel lanes"),
        "avx2": ("Winograd", "grouped lanes", "channel lanes"),
    }
    assert tuple(report.kernels.values()) == expected[isa]


def test_training_mode_is_told_of_as_eval_mode():
    model = TinyNet()
    report = fastres.explain(model)
    assert report.fused == fastres.explain(model.eval()).fused
    assert any("training mode" in note for note in report.notes)
    assert model.train().training


def test_reasons():
    layers = {
        "reflect": nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        "alone": nn.BatchNorm2d(8),
        "untracked": nn.Conv2d(8, 8, 1),
        "norm": nn.BatchNorm2d(8, track_running_stats=False),
        "up": nn.ConvTranspose2d(8, 8, 2),
        "hooked": conv_bn(8, 8),
        "param": nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)),
        "act": nn.PReLU(),
    }
    layers["hooked"].register_forward_hook(lambda *_: None)
    model = Function(lambda m, x: [x := getattr(m, name)(x) for name in layers][-1], **layers)
    report = fastres.explain(model.eval())
    assert set(report.left) == {
        Left("reflect", "padding_mode='reflect'"),
        Left("alone", "its BatchNorm follows no convolution"),
        Left("untracked", "its BatchNorm keeps no running statistics"),
        Left("norm", "its BatchNorm keeps no running statistics"),
        Left("up", "ConvTranspose2d has no kernel"),
        Left("hooked", "has hooks"),
        Left("param", "parametrized"),
    }
    assert [fused.modules for fused in report.fused] == [("hooked.0", "hooked.1")]
    assert "left alone: param: parametrized" in str(report)


def test_tracing_failures():
    def forward(m, x):
        return m.a(x) if x.sum() > 0 else m.b(x)

    model = Function(forward, a=conv_bn(3, 4), b=nn.BatchNorm2d(3)).eval()
    report = fastres.explain(model)
    assert [fused.modules for fused in report.fused] == [("a.0", "a.1")]
    assert report.left == [
        Left("", "tracing failed: it branches on a value that is not known before the call"),
        Left("b", "its caller cannot be traced"),
    ]  # fmt: skip
    assert "left alone: (the model): tracing failed" in str(report)


def test_mixed_modes():
    model = randomised(TinyNet())
    model.bn1.train()
    assert {left.module: left.reason for left in fastres.explain(model).left} == dict.fromkeys(
        ("conv1", "bn1"), "its BatchNorm is in training mode"
    )


@pytest.mark.parametrize(
    ("convert", "note"),
    [
        (lambda m: m.double(), "no kernel for torch.float64 weights"),
        (lambda m: m.to("meta"), "no kernel for device 'meta'"),
    ],
)
def test_notes(convert, note):
    model = convert(randomised(TinyNet()))
    assert note in str(fastres.explain(model))


def test_leaves_the_model_alone():
    model = TinyNet()
    before = {name: module.__dict__.copy() for name, module in model.named_modules()}
    fastres.explain(model)
    assert before == {name: module.__dict__ for name, module in model.named_modules()}
    assert all(type(m).__mro__[0].__module__ != "fastres.accelerate" for m in model.modules())


def test_unfused_model():
    assert str(fastres.explain(nn.Linear(2, 2))).startswith("Linear: fuses nothing; leaves 0")
    assert torch.is_grad_enabled()


def test_training():
    model = fastres.accelerate(TinyNet(), memory="save")
    model.layer1[0].bn1.eval()
    model.layer2[0].conv2.register_forward_hook(lambda *_: None)
    report = fastres.explain(model)
    assert Counter(fused.op for fused in report.training_fused) == {
        "conv_stats": 11, "affine_add_act": 5
    }  # fmt: skip
    assert report.training_fused[2].modules[:2] == ("layer1.0.conv1", "layer1.0.bn1")
    assert report.training_left == [
        Left("layer2.0.bn2", "its BatchNorm follows no convolution"),
        Left("layer2.0.conv2", "has hooks"),
    ]
    assert 0 < len(report.rebuilt) < 11
    text = str(report)
    assert "in training: fuses 5 affine_add_act, 11 conv_stats; leaves 2 as they were" in text
    assert f"memory='save': keeps no output of {len(report.rebuilt)} convolutions" in text
    assert "explain(model, input_shape=...) tells how many bytes that saves" in text
    first = report.rebuilt[0]
    assert (first.module, first.multiply_adds, first.bytes) == ("conv1", 27, None)
    assert "3x3, stride 2, relu, rebuilt in backward: 27 multiply-adds a value)" in text
    assert "rebuilt in backward" not in str(fastres.explain(model.eval()))
