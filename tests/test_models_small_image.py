"""Small-image ResNets against the form in which they are commonly written."""

import pytest
import torch
from network_case import assert_same_keys, check_inference, check_training
from torch import nn

import fastres


class Block(nn.Module):
    """The ReLU is made in forward."""

    def __init__(self, channels, planes, stride, bottleneck):
        super().__init__()
        out = planes * 4 if bottleneck else planes
        if bottleneck:
            shapes = [(channels, planes, 1, 1), (planes, planes, 3, stride), (planes, out, 1, 1)]
        else:
            shapes = [(channels, planes, 3, stride), (planes, planes, 3, 1)]
        layers = []
        for inputs, outputs, kernel, step in shapes:
            layers += [
                nn.Conv2d(inputs, outputs, kernel, step, kernel // 2, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
        self.residual_function = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out),
            )

    def forward(self, x):
        return nn.ReLU(inplace=True)(self.residual_function(x) + self.shortcut(x))


class Plain(nn.Module):
    def __init__(self, depths, bottleneck, num_classes):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        )
        channels = 64
        for stage, depth in enumerate(depths):
            planes = 64 << stage
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Block(channels, planes, stride, bottleneck))
                channels = planes * 4 if bottleneck else planes
            setattr(self, f"conv{stage + 2}_x", nn.Sequential(*blocks))
        self.avg_pool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = self.conv1(x)
        for stage in (self.conv2_x, self.conv3_x, self.conv4_x, self.conv5_x):
            x = stage(x)
        x = self.avg_pool(x)
        return self.fc(x.view(x.size(0), -1))


DEPTHS = {
    "small_resnet18": ((2, 2, 2, 2), False),
    "small_resnet34": ((3, 4, 6, 3), False),
    "small_resnet50": ((3, 4, 6, 3), True),
    "small_resnet101": ((3, 4, 23, 3), True),
    "small_resnet152": ((3, 8, 36, 3), True),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_keys(name):
    with torch.device("meta"):
        ours = getattr(fastres.models, name)(num_classes=2)
        assert_same_keys(ours, Plain(*DEPTHS[name], 2))


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("small_resnet18", {"conv_bn_act": 20}),
        ("small_resnet50", {"conv_bn_act": 1, "grouped_bottleneck": 16}),
    ],
)
def test_inference(name, counts, assert_accurate):
    """Cats and dogs at 96x96."""
    ours = getattr(fastres.models, name)(num_classes=2)
    plain = Plain(*DEPTHS[name], 2)
    check_inference(ours, plain, torch.randn(1, 3, 96, 96), assert_accurate, **counts)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_training(bottleneck):
    block = fastres.models.SmallBottleneck if bottleneck else fastres.models.SmallBasicBlock
    depths = (1, 2, 1, 1)
    ours = fastres.accelerate(fastres.models.SmallResNet(block, depths, num_classes=2))
    check_training(ours, Plain(depths, bottleneck, 2), torch.randn(4, 3, 32, 32))
