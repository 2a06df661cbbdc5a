"""torchvision's ResNets, accelerated: the same signatures, weights, keys and initial values.

``fastres.models.resnext50_32x4d(weights="IMAGENET1K_V2")`` takes the place of
``torchvision.models.resnext50_32x4d(weights="IMAGENET1K_V2")``. A state_dict goes either way, and
after ``torch.manual_seed(s)`` both start from the same random weights.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ._weights import Weights, load_weights
from .accelerate import accelerate
from .nn import BasicBlock, Bottleneck, NormLayer, projection

__all__ = [
    "CONSTRUCTORS",
    "ResNet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, and a linear classifier.

    The constructors below return it accelerated. For a network of your own:
    ``fastres.accelerate(ResNet(Bottleneck, [3, 8, 4, 3]))``.

    Args:
        block: ``BasicBlock`` or ``Bottleneck``, or a class with their signature and ``expansion``.
        layers: the number of blocks in each of the four stages.
        num_classes: width of the classifier.
        zero_init_residual: start the last BatchNorm of every block at zero, so that every block
            starts as the identity (https://arxiv.org/abs/1706.02677, +0.2 to 0.3 % top-1).
        groups, width_per_group: of the blocks' 3x3 convolutions.
        replace_stride_with_dilation: for stages 2, 3 and 4, whether to dilate where the stage
            would stride (for dense prediction); None is ``[False, False, False]``.
        norm_layer: ``channels -> module``; None is ``nn.BatchNorm2d``.

    Shapes:
        ``[N, 3, H, W] -> [N, num_classes]``; any H and W from 1 up.

    Raises:
        ValueError: ``replace_stride_with_dilation`` has not three elements, or the block refuses
            its arguments.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: NormLayer | None = None,
    ) -> None:
        super().__init__()
        dilate = replace_stride_with_dilation or (False, False, False)
        if len(dilate) != 3:
            raise ValueError(
                f"replace_stride_with_dilation: got {dilate}, expected None or three booleans, "
                "for stages 2, 3 and 4"
            )
        self._norm_layer = norm_layer or nn.BatchNorm2d
        self.groups = groups
        self.base_width = width_per_group
        # The state of the construction; detection code reads `inplanes` off a finished backbone.
        self.inplanes = 64
        self.dilation = 1
        self.conv1 = nn.Conv2d(3, self.inplanes, 7, stride=2, padding=3, bias=False)
        self.bn1 = self._norm_layer(self.inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._make_stage(block, 64, layers[0], stride=1, dilate=False)
        self.layer2 = self._make_stage(block, 128, layers[1], stride=2, dilate=dilate[0])
        self.layer3 = self._make_stage(block, 256, layers[2], stride=2, dilate=dilate[1])
        self.layer4 = self._make_stage(block, 512, layers[3], stride=2, dilate=dilate[2])
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        _initialise(self, zero_init_residual)

    def _make_stage(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        planes: int,
        depth: int,
        stride: int,
        dilate: bool,
    ) -> nn.Sequential:
        """``depth`` blocks, of which the first strides, or else the following ones dilate."""
        dilation = self.dilation
        if dilate:
            self.dilation, stride = self.dilation * stride, 1
        outplanes = planes * block.expansion
        downsample = None
        if stride != 1 or self.inplanes != outplanes:
            downsample = projection(self.inplanes, outplanes, stride, self._norm_layer)
        blocks = []
        for _ in range(depth):
            blocks.append(
                block(
                    self.inplanes,
                    planes,
                    stride,
                    downsample,
                    self.groups,
                    self.base_width,
                    dilation,
                    self._norm_layer,
                )
            )
            self.inplanes, stride, downsample, dilation = outplanes, 1, None, self.dilation
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of images ``[N, 3, H, W]``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _initialise(model: nn.Module, zero_init_residual: bool) -> None:
    """He initialisation, https://arxiv.org/abs/1502.01852.

    It goes through the modules in torchvision's order, so that one seed gives one network.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm) and module.affine:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    if not zero_init_residual:
        return
    for module in model.modules():
        if isinstance(module, Bottleneck):
            _zero_weight(module.bn3)
        elif isinstance(module, BasicBlock):
            _zero_weight(module.bn2)


def _zero_weight(norm: nn.Module) -> None:
    weight = getattr(norm, "weight", None)
    if weight is not None:
        nn.init.zeros_(weight)


_RESNET = '"Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385'
_RESNEXT = (
    '"Aggregated Residual Transformations for Deep Neural Networks",\n'
    "    https://arxiv.org/abs/1611.05431"
)
_WIDE = '"Wide Residual Networks", https://arxiv.org/abs/1605.07146'


class Architecture(NamedTuple):
    """One network: how to build it, and what is published about it."""

    title: str
    enum_name: str
    block: type[BasicBlock] | type[Bottleneck]
    layers: tuple[int, int, int, int]
    fixed: dict[str, int]
    parameters: int
    gmacs: float
    #: Name of the weights -> (top-1, top-5) in percent on ImageNet-1K, as torchvision publishes.
    accuracy: dict[str, tuple[float, float]]
    paper: str


# fmt: off
_ARCHITECTURES = {
    "resnet18": Architecture(
        "ResNet-18", "ResNet18_Weights", BasicBlock, (2, 2, 2, 2), {}, 11_689_512, 1.814,
        {"IMAGENET1K_V1": (69.758, 89.078)}, _RESNET,
    ),
    "resnet34": Architecture(
        "ResNet-34", "ResNet34_Weights", BasicBlock, (3, 4, 6, 3), {}, 21_797_672, 3.664,
        {"IMAGENET1K_V1": (73.314, 91.420)}, _RESNET,
    ),
    "resnet50": Architecture(
        "ResNet-50", "ResNet50_Weights", Bottleneck, (3, 4, 6, 3), {}, 25_557_032, 4.089,
        {"IMAGENET1K_V1": (76.130, 92.862), "IMAGENET1K_V2": (80.858, 95.434)}, _RESNET,
    ),
    "resnet101": Architecture(
        "ResNet-101", "ResNet101_Weights", Bottleneck, (3, 4, 23, 3), {}, 44_549_160, 7.801,
        {"IMAGENET1K_V1": (77.374, 93.546), "IMAGENET1K_V2": (81.886, 95.780)}, _RESNET,
    ),
    "resnet152": Architecture(
        "ResNet-152", "ResNet152_Weights", Bottleneck, (3, 8, 36, 3), {}, 60_192_808, 11.514,
        {"IMAGENET1K_V1": (78.312, 94.046), "IMAGENET1K_V2": (82.284, 96.002)}, _RESNET,
    ),
    "resnext50_32x4d": Architecture(
        "ResNeXt-50 32x4d", "ResNeXt50_32X4D_Weights", Bottleneck, (3, 4, 6, 3),
        {"groups": 32, "width_per_group": 4}, 25_028_904, 4.230,
        {"IMAGENET1K_V1": (77.618, 93.698), "IMAGENET1K_V2": (81.198, 95.340)}, _RESNEXT,
    ),
    "resnext101_32x8d": Architecture(
        "ResNeXt-101 32x8d", "ResNeXt101_32X8D_Weights", Bottleneck, (3, 4, 23, 3),
        {"groups": 32, "width_per_group": 8}, 88_791_336, 16.414,
        {"IMAGENET1K_V1": (79.312, 94.526), "IMAGENET1K_V2": (82.834, 96.228)}, _RESNEXT,
    ),
    "resnext101_64x4d": Architecture(
        "ResNeXt-101 64x4d", "ResNeXt101_64X4D_Weights", Bottleneck, (3, 4, 23, 3),
        {"groups": 64, "width_per_group": 4}, 83_455_272, 15.460,
        {"IMAGENET1K_V1": (83.246, 96.454)}, _RESNEXT,
    ),
    "wide_resnet50_2": Architecture(
        "Wide ResNet-50-2", "Wide_ResNet50_2_Weights", Bottleneck, (3, 4, 6, 3),
        {"width_per_group": 128}, 68_883_240, 11.398,
        {"IMAGENET1K_V1": (78.468, 94.086), "IMAGENET1K_V2": (81.602, 95.758)}, _WIDE,
    ),
    "wide_resnet101_2": Architecture(
        "Wide ResNet-101-2", "Wide_ResNet101_2_Weights", Bottleneck, (3, 4, 23, 3),
        {"width_per_group": 128}, 126_886_696, 22.753,
        {"IMAGENET1K_V1": (78.848, 94.284), "IMAGENET1K_V2": (82.510, 96.020)}, _WIDE,
    ),
}
# fmt: on

_DOCSTRING = """{title}, accelerated.

{parameters:.1f} M parameters, {gmacs:.2f} GMACs for a 224x224 image.
{accuracy}

Args:
    weights: None for random weights; a member of torchvision's ``{enum_name}`` or
        its name ({names}, "DEFAULT"), which torchvision
        downloads and caches; or the path of a file that ``torch.save`` wrote (a state_dict, or a
        checkpoint that holds one).
    progress: whether a download shows its progress on stderr.
    **kwargs: of :class:`ResNet`: ``num_classes`` (default: as many as the weights have, else
        1000), ``zero_init_residual``, ``replace_stride_with_dilation``, ``norm_layer``.

Returns:
    The network after :func:`fastres.accelerate`: parameters, ``state_dict`` keys and results are
    torchvision's. Float ``[N, 3, H, W] -> [N, num_classes]``.

Raises:
    ValueError: unknown weights, another model's, or an argument that contradicts them.
    ImportError: weights were named and torchvision is not installed.

Source: {paper}.
"""


class Constructor(Protocol):
    """The signature of every constructor of this module, which is torchvision's."""

    __name__: str

    def __call__(
        self, *, weights: Weights | None = None, progress: bool = True, **kwargs: Any
    ) -> ResNet: ...


def _constructor(name: str) -> Constructor:
    architecture = _ARCHITECTURES[name]

    def construct(
        *, weights: Weights | None = None, progress: bool = True, **kwargs: Any
    ) -> ResNet:
        state = None
        for argument, value in architecture.fixed.items():
            _set_or_agree(kwargs, argument, value, f"{name} fixes it")
        if weights is not None:
            state = load_weights(weights, architecture.enum_name, progress)
            if "fc.weight" in state:
                _set_or_agree(kwargs, "num_classes", len(state["fc.weight"]), "of the weights")
        model = ResNet(architecture.block, architecture.layers, **kwargs)
        if state is not None:
            model.load_state_dict(state)
        accelerate(model)
        return model

    construct.__name__ = construct.__qualname__ = name
    construct.__doc__ = _DOCSTRING.format(
        title=architecture.title,
        parameters=architecture.parameters / 1e6,
        gmacs=architecture.gmacs,
        accuracy=_describe_accuracy(architecture.accuracy),
        enum_name=architecture.enum_name,
        names=", ".join(f'"{weights}"' for weights in architecture.accuracy),
        paper=architecture.paper,
    )
    return construct


def _set_or_agree(kwargs: dict[str, Any], argument: str, value: int, why: str) -> None:
    if kwargs.setdefault(argument, value) != value:
        raise ValueError(f"{argument}: got {kwargs[argument]}, expected {value} ({why})")


def _describe_accuracy(accuracy: dict[str, tuple[float, float]]) -> str:
    return "\n".join(
        f"ImageNet-1K accuracy of {weights}: top-1 {top1:.3f} %, top-5 {top5:.3f} %."
        for weights, (top1, top5) in accuracy.items()
    )


resnet18 = _constructor("resnet18")
resnet34 = _constructor("resnet34")
resnet50 = _constructor("resnet50")
resnet101 = _constructor("resnet101")
resnet152 = _constructor("resnet152")
resnext50_32x4d = _constructor("resnext50_32x4d")
resnext101_32x8d = _constructor("resnext101_32x8d")
resnext101_64x4d = _constructor("resnext101_64x4d")
wide_resnet50_2 = _constructor("wide_resnet50_2")
wide_resnet101_2 = _constructor("wide_resnet101_2")

#: Every constructor of this module by its name.
CONSTRUCTORS: dict[str, Constructor] = {name: globals()[name] for name in _ARCHITECTURES}
