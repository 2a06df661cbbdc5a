"""ResNet v1 (stride on the first 1x1) and v2 (pre-activation) against plain builds."""

import pytest
import timm
import torch
from network_case import assert_same_keys, check_inference, check_training
from torch import nn
from torch.nn import functional as F

import fastres
from fastres.models import PreActBasicBlock, PreActBottleneck, ResNetV2


class Block(nn.Module):
    def __init__(self, channels, planes, stride, bottleneck):
        super().__init__()
        out = planes * 4 if bottleneck else planes
        shapes = [(channels, planes, 3, stride), (planes, planes, 3, 1)]
        if bottleneck:
            shapes = [(channels, planes, 1, 1), (planes, planes, 3, stride), (planes, out, 1, 1)]
        self.count = len(shapes)
        for i, (inputs, outputs, kernel, step) in enumerate(shapes, start=1):
            setattr(self, f"bn{i}", nn.BatchNorm2d(inputs))
            conv = nn.Conv2d(inputs, outputs, kernel, step, kernel // 2, bias=False)
            setattr(self, f"conv{i}", conv)
        if stride != 1 or channels != out:
            self.downsample = nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x):
        shortcut = x
        for i in range(1, self.count + 1):
            x = F.relu(getattr(self, f"bn{i}")(x))
            if i == 1 and hasattr(self, "downsample"):
                shortcut = self.downsample(x)
            x = getattr(self, f"conv{i}")(x)
        return x + shortcut


class Plain(nn.Module):
    def __init__(self, depths, bottleneck, num_classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        channels = 64
        for stage, depth in enumerate(depths):
            planes = 64 << stage
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Block(channels, planes, stride, bottleneck))
                channels = planes * 4 if bottleneck else planes
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = F.max_pool2d(self.conv1(x), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


DEPTHS = {
    "resnet18_v2": ((2, 2, 2, 2), False),
    "resnet34_v2": ((3, 4, 6, 3), False),
    "resnet50_v2": ((3, 4, 6, 3), True),
    "resnet101_v2": ((3, 4, 23, 3), True),
    "resnet152_v2": ((3, 8, 36, 3), True),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_keys_of_v2(name):
    with torch.device("meta"):
        assert_same_keys(getattr(fastres.models, name)(), Plain(*DEPTHS[name]))


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("resnet18_v2", {"conv_max_pool": 1, "conv_bn_act": 19, "affine_add_act": 9}),
        ("resnet50_v2", {"conv_max_pool": 1, "conv_bn_act": 52, "affine_add_act": 17}),
    ],
)
def test_inference_of_v2(name, counts, assert_accurate):
    ours = getattr(fastres.models, name)()
    plain = Plain(*DEPTHS[name])
    check_inference(ours, plain, torch.randn(2, 3, 64, 96), assert_accurate, **counts)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_training_of_v2(bottleneck):
    block = PreActBottleneck if bottleneck else PreActBasicBlock
    ours = fastres.accelerate(ResNetV2(block, (1, 2, 1, 1), num_classes=2))
    check_training(ours, Plain((1, 2, 1, 1), bottleneck, 2), torch.randn(4, 3, 64, 64))


class V1Block(nn.Module):
    """The bottleneck of the first paper."""

    def __init__(self, channels, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.downsample = None
        if stride != 1 or channels != 4 * planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class V1(nn.Module):
    def __init__(self, depths):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(V1Block(channels, 64 << stage, stride))
                channels = 256 << stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, 1000)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "depths"),
    [
        ("resnet50_v1", (3, 4, 6, 3)),
        ("resnet101_v1", (3, 4, 23, 3)),
        ("resnet152_v1", (3, 8, 36, 3)),
    ],
)
def test_keys_of_v1(name, depths):
    with torch.device("meta"):
        assert_same_keys(getattr(fastres.models, name)(), V1(depths))


def test_inference_of_v1(assert_accurate):
    """The three blocks that stride run as convolutions: a fused bottleneck strides on its 3x3."""
    counts = {"conv_max_pool": 1, "conv_bn_act": 3 * 4, "grouped_bottleneck": 13}
    x = torch.randn(1, 3, 64, 96)
    check_inference(fastres.models.resnet50_v1(), V1((3, 4, 6, 3)), x, assert_accurate, **counts)


def test_v2_is_timms():
    """Another library's weights, in order, give its results."""
    theirs = timm.create_model("resnetv2_50", num_classes=7).eval()
    ours = fastres.models.resnet50_v2(num_classes=7).eval()
    state = theirs.state_dict()

    def their_key(key: str) -> str:
        key = key.replace("conv1.", "stem.conv.", 1) if key.startswith("conv1.") else key
        if key.startswith("layer"):
            stage, block, rest = key.split(".", 2)
            rest = rest.replace("bn", "norm").replace("downsample", "downsample.conv")
            key = f"stages.{int(stage[5:]) - 1}.blocks.{block}.{rest}"
        return key.replace("fc.", "head.fc.").replace("bn.", "norm.", 1)

    shaped = {}
    for key, value in ours.state_dict().items():
        shaped[key] = state[their_key(key)].reshape(value.shape)
    assert len(shaped) == len(state)
    ours.load_state_dict(shaped)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
