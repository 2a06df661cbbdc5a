"""torchvision's ResNets, accelerated: the same signatures, weights, keys and initial values.

``fastres.models.resnext50_32x4d(weights="IMAGENET1K_V2")`` takes the place of
``torchvision.models.resnext50_32x4d(weights="IMAGENET1K_V2")``. A state_dict goes either way, and
after ``torch.manual_seed(s)`` both start from the same random weights.
"""

from typing import Any, NamedTuple, Protocol

from ..accelerate import accelerate
from ..nn import BasicBlock, Bottleneck
from ._weights import Weights, load_weights
from .resnet import ResNet

__all__ = [
    "ARCHITECTURES",
    "CONSTRUCTORS",
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
ARCHITECTURES = {
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
    architecture = ARCHITECTURES[name]

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
CONSTRUCTORS: dict[str, Constructor] = {name: globals()[name] for name in ARCHITECTURES}
