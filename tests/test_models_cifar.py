"""ResNeXt by cardinality, base width and widen factor against a plain build."""

import pytest
import torch
from network_case import assert_same_keys, check_inference, check_training
from torch import nn
from torch.nn import functional as F
from torch.nn import init

import fastres
from fastres.models import CifarBottleneck, CifarResNeXt


class Block(nn.Module):
    def __init__(self, in_channels, out_channels, stride, cardinality, base_width, widen_factor):
        super().__init__()
        ratio = out_channels / (widen_factor * 64.0)
        width = cardinality * int(base_width * ratio)
        self.conv_reduce = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(width)
        self.conv_conv = nn.Conv2d(
            width, width, 3, stride=stride, padding=1, groups=cardinality, bias=False
        )
        self.bn = nn.BatchNorm2d(width)
        self.conv_expand = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        self.bn_expand = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if in_channels != out_channels:
            self.shortcut.add_module(
                "shortcut_conv", nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            )
            self.shortcut.add_module("shortcut_bn", nn.BatchNorm2d(out_channels))

    def forward(self, x):
        bottleneck = F.relu(self.bn_reduce(self.conv_reduce(x)), inplace=True)
        bottleneck = F.relu(self.bn(self.conv_conv(bottleneck)), inplace=True)
        bottleneck = self.bn_expand(self.conv_expand(bottleneck))
        return F.relu(self.shortcut(x) + bottleneck, inplace=True)


class Plain(nn.Module):
    def __init__(self, cardinality, depth, base_width, widen_factor, num_classes):
        super().__init__()
        self.conv_1_3x3 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn_1 = nn.BatchNorm2d(64)
        channels = [64] + [64 * widen_factor * factor for factor in (1, 2, 4)]
        for stage in (1, 2, 3):
            blocks = nn.Sequential()
            for index in range((depth - 2) // 9):
                first = index == 0
                block = Block(
                    channels[stage - 1] if first else channels[stage],
                    channels[stage],
                    2 if first and stage > 1 else 1,
                    *(cardinality, base_width, widen_factor),
                )
                blocks.add_module(f"stage_{stage}_bottleneck_{index}", block)
            setattr(self, f"stage_{stage}", blocks)
        self.classifier = nn.Linear(channels[3], num_classes)
        for key in self.state_dict():
            if key.split(".")[-1] == "weight" and "conv" in key:
                init.kaiming_normal_(self.state_dict()[key], mode="fan_out")

    def forward(self, x):
        x = F.relu(self.bn_1(self.conv_1_3x3(x)), inplace=True)
        x = self.stage_3(self.stage_2(self.stage_1(x)))
        x = F.avg_pool2d(x, x.shape[-1], 1)
        return self.classifier(x.view(-1, x.shape[1]))


@pytest.mark.parametrize("cardinality", [8, 16])
@pytest.mark.parametrize("widen_factor", [1, 4])
def test_keys(cardinality, widen_factor):
    construct = getattr(fastres.models, f"resnext29_{cardinality}x64d")
    with torch.device("meta"):
        ours = construct(widen_factor=widen_factor, num_classes=100)
        assert_same_keys(ours, Plain(cardinality, 29, 64, widen_factor, 100))


def test_inner_width_is_the_formulas():
    """D = cardinality * int(base_width * out / (widen_factor * 64)), truncated."""
    assert CifarBottleneck(64, 256, 1, 8, 64, 4).conv_reduce.out_channels == 8 * 64
    assert CifarBottleneck(64, 512, 1, 8, 64, 4).conv_reduce.out_channels == 8 * 128
    assert CifarBottleneck(64, 96, 1, 3, 5, 2).conv_reduce.out_channels == 3 * int(5 * 0.75)


def test_inference_of_8x64d(assert_accurate):
    ours = fastres.models.resnext29_8x64d()
    x = torch.randn(1, 3, 32, 32)
    counts = {"conv_bn_act": 1, "grouped_bottleneck": 9}
    check_inference(ours, Plain(8, 29, 64, 4, 10), x, assert_accurate, **counts)


@pytest.mark.parametrize("cardinality", [1, 4])
def test_inference_of_odd_widths(cardinality, assert_accurate):
    ours = fastres.accelerate(CifarResNeXt(cardinality, 20, 5, 1, num_classes=3))
    x = torch.randn(2, 3, 17, 17)
    counts = {"conv_bn_act": 1, "grouped_bottleneck": 6}
    check_inference(ours, Plain(cardinality, 20, 5, 1, 3), x, assert_accurate, **counts)


def test_training():
    ours = fastres.accelerate(CifarResNeXt(4, 11, 8, 1, num_classes=2))
    check_training(ours, Plain(4, 11, 8, 1, 2), torch.randn(4, 3, 32, 32))


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="depth: got 28, expected 9 k"):
        CifarResNeXt(depth=28)
    with pytest.raises(ValueError, match="stride: got 2 with 64 channels in and out"):
        CifarBottleneck(64, 64, 2, 8, 64, 1)
    with pytest.raises(ValueError, match="base_width: got 1"):
        CifarBottleneck(64, 64, 1, 8, 1, 4)
