"""torchvision's DenseNets, accelerated: the same signatures, weights, keys and initial values."""

import re
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..accelerate import accelerate
from ._weights import Weights, load_weights

__all__ = ["DenseNet", "densenet121", "densenet161", "densenet169", "densenet201"]

#: The published weights are older than the names: ``norm.1`` for ``norm1``.
_OLD_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")


class _DenseLayer(nn.Module):
    """BN, ReLU, 1x1, BN, ReLU, 3x3: ``growth_rate`` new channels out of all that there are."""

    def __init__(self, in_channels: int, growth_rate: int, bn_size: int, drop_rate: float) -> None:
        super().__init__()
        width = bn_size * growth_rate
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, growth_rate, 3, padding=1, bias=False)
        self.drop_rate = float(drop_rate)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        x = self.conv2(self.relu2(self.norm2(x)))
        if self.drop_rate > 0:
            x = F.dropout(x, self.drop_rate, self.training)
        return x


class _DenseBlock(nn.ModuleDict):
    """Layers of which each reads the outputs of all before it."""

    def __init__(
        self, depth: int, in_channels: int, bn_size: int, growth_rate: int, drop_rate: float
    ) -> None:
        super().__init__()
        for index in range(depth):
            self[f"denselayer{index + 1}"] = _DenseLayer(
                in_channels + index * growth_rate, growth_rate, bn_size, drop_rate
            )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


def _transition(in_channels: int) -> nn.Sequential:
    """Half the channels at half the resolution."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(in_channels),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(in_channels, in_channels // 2, 1, bias=False),
            pool=nn.AvgPool2d(2, 2),
        )
    )


class DenseNet(nn.Module):
    """DenseNet-BC: a stem, four dense blocks with transitions between, a linear classifier.

    The constructors below return it accelerated. Keys and initial values are torchvision's; its
    ``memory_efficient`` (recomputing in the backward pass) is not offered.

    Args:
        growth_rate: channels that each layer adds.
        block_config: the number of layers in each of the blocks.
        num_init_features: channels of the stem.
        bn_size: width of a layer's 1x1 convolution, in growth rates.
        drop_rate: of the dropout after each layer.
        num_classes: width of the classifier.

    Shapes:
        ``[N, 3, H, W] -> [N, num_classes]``; H and W from 29 up.
    """

    def __init__(
        self,
        growth_rate: int = 32,
        block_config: tuple[int, ...] = (6, 12, 24, 16),
        num_init_features: int = 64,
        bn_size: int = 4,
        drop_rate: float = 0,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        channels = num_init_features
        features: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
            norm0=nn.BatchNorm2d(channels),
            relu0=nn.ReLU(inplace=True),
            pool0=nn.MaxPool2d(3, stride=2, padding=1),
        )
        for number, depth in enumerate(block_config, start=1):
            features[f"denseblock{number}"] = _DenseBlock(
                depth, channels, bn_size, growth_rate, drop_rate
            )
            channels += depth * growth_rate
            if number < len(block_config):
                features[f"transition{number}"] = _transition(channels)
                channels //= 2
        features["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(features)
        self.classifier = nn.Linear(channels, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        """In torchvision's order and with its fan-in, so that one seed gives one network."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of images ``[N, 3, H, W]``."""
        x = F.relu(self.features(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


def _build(enum_name: str, weights: Weights, progress: bool, kwargs: dict[str, Any]) -> DenseNet:
    state = None
    if weights is not None:
        loaded = load_weights(weights, enum_name, progress)
        state = {_OLD_KEY.sub(r"\1\2.", key): value for key, value in loaded.items()}
        if "classifier.weight" in state:
            classes = len(state["classifier.weight"])
            if kwargs.setdefault("num_classes", classes) != classes:
                raise ValueError(
                    f"num_classes: got {kwargs['num_classes']}, expected {classes} (of the weights)"
                )
    model = DenseNet(**kwargs)
    if state is not None:
        model.load_state_dict(state)
    accelerate(model)
    return model


def densenet121(
    *, weights: Weights | None = None, progress: bool = True, **kwargs: Any
) -> DenseNet:
    """DenseNet-121, accelerated: 7.98 M parameters, 2.83 GMACs for a 224x224 image.

    Args:
        weights: None for random weights; a member of torchvision's ``DenseNet121_Weights`` or its
            name ("IMAGENET1K_V1", "DEFAULT"), which torchvision downloads and caches; or the path
            of a checkpoint.
        progress: whether a download shows its progress on stderr.
        **kwargs: of :class:`DenseNet`: ``num_classes`` (default: as many as the weights have, else
            1000), ``drop_rate``, ``bn_size``.

    Shapes:
        ``[N, 3, H, W] -> [N, num_classes]``.

    Raises:
        ValueError: unknown weights, another model's, or ``num_classes`` contradicts them.
        ImportError: weights were named and torchvision is not installed.

    Source: https://arxiv.org/abs/1608.06993.
    """
    return _build("DenseNet121_Weights", weights, progress, kwargs)


def densenet161(
    *, weights: Weights | None = None, progress: bool = True, **kwargs: Any
) -> DenseNet:
    """DenseNet-161, accelerated: 28.7 M parameters, 7.73 GMACs for a 224x224 image.

    Arguments, shapes, errors and source: as of :func:`densenet121`.
    """
    shape = {"growth_rate": 48, "block_config": (6, 12, 36, 24), "num_init_features": 96}
    return _build("DenseNet161_Weights", weights, progress, shape | kwargs)


def densenet169(
    *, weights: Weights | None = None, progress: bool = True, **kwargs: Any
) -> DenseNet:
    """DenseNet-169, accelerated: 14.1 M parameters, 3.36 GMACs for a 224x224 image.

    Arguments, shapes, errors and source: as of :func:`densenet121`.
    """
    shape = {"block_config": (6, 12, 32, 32)}
    return _build("DenseNet169_Weights", weights, progress, shape | kwargs)


def densenet201(
    *, weights: Weights | None = None, progress: bool = True, **kwargs: Any
) -> DenseNet:
    """DenseNet-201, accelerated: 20.0 M parameters, 4.29 GMACs for a 224x224 image.

    Arguments, shapes, errors and source: as of :func:`densenet121`.
    """
    shape = {"block_config": (6, 12, 48, 32)}
    return _build("DenseNet201_Weights", weights, progress, shape | kwargs)
