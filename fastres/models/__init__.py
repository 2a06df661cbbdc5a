"""Networks, accelerated: torchvision's ResNets and DenseNets, and the forms that people bring.

Each module is a family: torchvision's ResNets and ResNeXts (``imagenet``) and DenseNets
(``densenet``); ResNet v1 (``resnet_v1``) and pre-activation ResNet v2 (``resnet_v2``); ResNets for
small images (``small_image``); ResNeXts by group count (``resnext_groups``), by cardinality, base
width and widen factor (``cifar``), and with Keras's conventions (``keras_style``).
"""

import inspect
from collections.abc import Callable

from torch import nn

from . import (
    cifar,
    densenet,
    imagenet,
    keras_style,
    resnet_v1,
    resnet_v2,
    resnext_groups,
    small_image,
)
from .cifar import CifarBottleneck, CifarResNeXt, resnext29_8x64d, resnext29_16x64d
from .densenet import DenseNet, densenet121, densenet161, densenet169, densenet201
from .imagenet import (
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50_32x4d,
    resnext101_32x8d,
    resnext101_64x4d,
    wide_resnet50_2,
    wide_resnet101_2,
)
from .keras_style import KerasBlock, KerasResNeXt, keras_resnext50, keras_resnext101
from .resnet import ResNet
from .resnet_v1 import BottleneckV1, resnet50_v1, resnet101_v1, resnet152_v1
from .resnet_v2 import (
    PreActBasicBlock,
    PreActBottleneck,
    ResNetV2,
    resnet18_v2,
    resnet34_v2,
    resnet50_v2,
    resnet101_v2,
    resnet152_v2,
)
from .resnext_groups import (
    GroupedBasicBlock,
    GroupedBottleneck,
    GroupedResNeXt,
    resnext18,
    resnext34,
    resnext50,
    resnext101,
    resnext152,
)
from .small_image import (
    SmallBasicBlock,
    SmallBottleneck,
    SmallResNet,
    small_resnet18,
    small_resnet34,
    small_resnet50,
    small_resnet101,
    small_resnet152,
)

__all__ = [
    "CONSTRUCTORS",
    "BottleneckV1",
    "CifarBottleneck",
    "CifarResNeXt",
    "DenseNet",
    "GroupedBasicBlock",
    "GroupedBottleneck",
    "GroupedResNeXt",
    "KerasBlock",
    "KerasResNeXt",
    "PreActBasicBlock",
    "PreActBottleneck",
    "ResNet",
    "ResNetV2",
    "SmallBasicBlock",
    "SmallBottleneck",
    "SmallResNet",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "keras_resnext50",
    "keras_resnext101",
    "resnet18",
    "resnet18_v2",
    "resnet34",
    "resnet34_v2",
    "resnet50",
    "resnet50_v1",
    "resnet50_v2",
    "resnet101",
    "resnet101_v1",
    "resnet101_v2",
    "resnet152",
    "resnet152_v1",
    "resnet152_v2",
    "resnext18",
    "resnext29_8x64d",
    "resnext29_16x64d",
    "resnext34",
    "resnext50",
    "resnext50_32x4d",
    "resnext101",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "resnext152",
    "small_resnet18",
    "small_resnet34",
    "small_resnet50",
    "small_resnet101",
    "small_resnet152",
    "wide_resnet50_2",
    "wide_resnet101_2",
]

_FAMILIES = (
    imagenet,
    densenet,
    resnet_v1,
    resnet_v2,
    small_image,
    resnext_groups,
    cifar,
    keras_style,
)

#: Every constructor by its name.
CONSTRUCTORS: dict[str, Callable[..., nn.Module]] = {
    name: getattr(family, name)
    for family in _FAMILIES
    for name in family.__all__
    if inspect.isfunction(getattr(family, name))
}
