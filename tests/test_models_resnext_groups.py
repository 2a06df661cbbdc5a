"""ResNeXts by group count against a plain build, and what people do with them."""

import math

import pytest
import torch
from network_case import assert_same_keys, check_inference, check_training
from torch import nn
from torch.nn import functional as F

import fastres


class Block(nn.Module):
    def __init__(self, channels, planes, stride, groups, bottleneck):
        super().__init__()
        if bottleneck:
            inner, out = planes * 2, planes * 4
            self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(inner)
            self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
            self.bn2 = nn.BatchNorm2d(inner)
            self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out)
        else:
            out = planes
            self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(planes)
            self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, groups=groups, bias=False)
            self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if hasattr(self, "conv3"):
            y = self.bn3(self.conv3(self.relu(y)))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class Plain(nn.Module):
    def __init__(self, depths, bottleneck, num_classes, groups=32):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage, depth in enumerate(depths):
            planes = 64 << stage
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Block(channels, planes, stride, groups, bottleneck))
                channels = planes * 4 if bottleneck else planes
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = F.avg_pool2d(x, 7)
        return self.fc(torch.flatten(x, 1))


DEPTHS = {
    "resnext18": ((2, 2, 2, 2), False),
    "resnext34": ((3, 4, 6, 3), False),
    "resnext50": ((3, 4, 6, 3), True),
    "resnext101": ((3, 4, 23, 3), True),
    "resnext152": ((3, 8, 36, 3), True),
}


@pytest.mark.parametrize("groups", [1, 8, 32])
@pytest.mark.parametrize("name", DEPTHS)
def test_keys(name, groups):
    with torch.device("meta"):
        ours = getattr(fastres.models, name)(num_group=groups, num_classes=2)
        assert_same_keys(ours, Plain(*DEPTHS[name], 2, groups))


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("resnext18", {"conv_max_pool": 1, "conv_bn_act": 19}),
        ("resnext50", {"conv_max_pool": 1, "grouped_bottleneck": 16}),
    ],
)
def test_inference(name, counts, assert_accurate):
    ours = getattr(fastres.models, name)(num_group=32)
    plain = Plain(*DEPTHS[name], 1000)
    check_inference(ours, plain, torch.randn(1, 3, 224, 224), assert_accurate, **counts)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_training(bottleneck):
    block = fastres.models.GroupedBottleneck if bottleneck else fastres.models.GroupedBasicBlock
    depths = (1, 1, 1, 1)
    ours = fastres.accelerate(fastres.models.GroupedResNeXt(block, depths, 2, num_group=8))
    check_training(ours, Plain(depths, bottleneck, 2, 8), torch.randn(2, 3, 224, 224), steps=2)


def test_initial_values_are_hes():
    model = fastres.models.resnext18()
    weight = model.layer4[0].conv2.weight  # 512 channels in 32 groups
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 512)), rel=0.02)
    assert model.layer1[0].bn2.weight.eq(1).all()
    assert model.layer1[0].bn2.bias.eq(0).all()


def test_the_pool_takes_seven_by_seven_and_no_less():
    model = fastres.models.resnext18(num_classes=2).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 193, 224)).shape == (1, 2)
        with pytest.raises(RuntimeError, match="Output size is too small"):
            model(torch.randn(1, 3, 128, 128))


def test_two_classes_are_fine_tuned_on_a_frozen_backbone(tmp_path):
    """As for a small medical data set: weights of 1000 classes, a new head, the rest frozen."""
    torch.save(fastres.models.resnext18().state_dict(), tmp_path / "pretrained.pth")
    model = fastres.models.resnext18(weights=tmp_path / "pretrained.pth")
    model.requires_grad_(False)
    model.fc = nn.Linear(512, 2)
    x = torch.randn(4, 3, 224, 224)
    x[::2] += 1
    target = torch.tensor([0, 1, 0, 1])
    before = model.eval()(x).detach()
    optimizer = torch.optim.Adam(model.fc.parameters(), lr=0.01)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        after = model(x)  # fused, with the head as it is now
        assert not torch.allclose(before, after, atol=1e-2)
        torch.testing.assert_close(after, fastres.restore(model)(x), rtol=1e-3, atol=1e-3)


def test_groups_have_to_divide_the_channels():
    with pytest.raises(ValueError, match="num_group: got 3, expected a divisor of the 64 channels"):
        fastres.models.resnext18(num_group=3)
    with pytest.raises(ValueError, match="num_group: got 0, expected a divisor of the 128"):
        fastres.models.resnext50(num_group=0)
