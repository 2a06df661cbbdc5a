"""The building blocks of the networks: plain PyTorch modules with torchvision's names and keys.

Nothing here calls a kernel. What makes a block fast is :func:`fastres.accelerate`, the mechanism
that accelerates anybody's model. Each block ends its construction with it, so that a block is fast
wherever it is put. A network that is accelerated as a whole fuses more, its own convolutions among
them, and makes one decision a call where the blocks make one each::

    net = fastres.accelerate(
        torch.nn.Sequential(
            fastres.nn.ConvBNAct(3, 64, 7, stride=2),
            fastres.nn.Bottleneck(64, 16, groups=32, base_width=4),
            torch.nn.Conv2d(64, 10, 1),
        )
    )

A subclass of a block is not accelerated by the block's constructor, which runs before the subclass
is complete: call ``fastres.accelerate`` on the finished object, or on the network.

Sources: He et al., "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385;
Xie et al., "Aggregated Residual Transformations for Deep Neural Networks",
https://arxiv.org/abs/1611.05431. The stride stands on the 3x3 convolution ("ResNet v1.5").
"""

from collections.abc import Callable

from torch import Tensor, nn

from .accelerate import accelerate

__all__ = ["ACTIVATIONS", "BasicBlock", "Bottleneck", "ConvBNAct", "projection"]

NormLayer = Callable[..., nn.Module]

#: Name of an activation (as the ops know it) -> function of the negative slope that builds it.
ACTIVATIONS: dict[str, Callable[[float], nn.Module]] = {
    "none": lambda slope: nn.Identity(),
    "relu": lambda slope: nn.ReLU(inplace=True),
    "relu6": lambda slope: nn.ReLU6(inplace=True),
    "silu": lambda slope: nn.SiLU(inplace=True),
    "leaky_relu": lambda slope: nn.LeakyReLU(slope, inplace=True),
}


def _accelerate_if_complete(block: nn.Module, cls: type[nn.Module]) -> None:
    if type(block) is cls:
        accelerate(block)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _centred_padding(
    kernel_size: int | tuple[int, int], dilation: int | tuple[int, int]
) -> tuple[int, int]:
    """The padding under which an odd kernel at stride 1 keeps height and width."""
    (kernel_h, kernel_w), (dilation_h, dilation_w) = _pair(kernel_size), _pair(dilation)
    return dilation_h * (kernel_h - 1) // 2, dilation_w * (kernel_w - 1) // 2


class ConvBNAct(nn.Module):
    """Convolution, BatchNorm, activation; keys ``conv.*`` and ``bn.*``.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups: as in ``nn.Conv2d``.
        padding: as in ``nn.Conv2d``; None (the default) centres the kernel, so that at stride 1 an
            odd kernel keeps height and width.
        bias: whether the convolution has a bias of its own (BatchNorm has one already).
        norm_layer: ``channels -> module`` for ``bn``; None is ``nn.BatchNorm2d``.
        act: "none", "relu", "relu6", "silu" or "leaky_relu".
        act_slope: the negative slope of "leaky_relu"; ignored by the others.

    Shapes:
        ``[N, in_channels, H, W] -> [N, out_channels, OH, OW]``, in the dtype of the parameters.

    Raises:
        ValueError: an unknown ``act``, or what ``nn.Conv2d`` refuses (groups that do not divide
            the channels, a non-positive stride).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str | None = None,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        norm_layer: NormLayer | None = None,
        act: str = "relu",
        act_slope: float = 0.01,
    ) -> None:
        super().__init__()
        if act not in ACTIVATIONS:
            raise ValueError(f"act: got {act!r}, expected one of {', '.join(ACTIVATIONS)}")
        if padding is None:
            padding = _centred_padding(kernel_size, dilation)
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        self.bn = (norm_layer or nn.BatchNorm2d)(out_channels)
        self.act = ACTIVATIONS[act](act_slope)
        _accelerate_if_complete(self, ConvBNAct)

    def forward(self, x: Tensor) -> Tensor:
        """``act(bn(conv(x)))``."""
        return self.act(self.bn(self.conv(x)))


def projection(
    in_channels: int, out_channels: int, stride: int = 1, norm_layer: NormLayer | None = None
) -> nn.Sequential:
    """The shortcut of a block that changes the shape: a strided 1x1 convolution and BatchNorm.

    Shapes: ``[N, in_channels, H, W] -> [N, out_channels, ceil(H/stride), ceil(W/stride)]``.
    Keys: ``0.weight`` and ``1.*``, torchvision's ``downsample``.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        (norm_layer or nn.BatchNorm2d)(out_channels),
    )


def _check_shortcut(
    block: str, inplanes: int, outplanes: int, stride: int, downsample: nn.Module | None
) -> None:
    if downsample is None and (stride != 1 or inplanes != outplanes):
        raise ValueError(
            f"downsample: {block} got None with stride={stride} and {inplanes} -> {outplanes} "
            "channels, expected a module that gives the shortcut the shape of the output, such as "
            f"fastres.nn.projection({inplanes}, {outplanes}, stride={stride})"
        )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18 and ResNet-34.

    Keys: ``conv1, bn1, conv2, bn2`` and, with a projection, ``downsample.0, downsample.1``.

    Args:
        inplanes: input channels.
        planes: output channels.
        stride: of the first convolution and of the shortcut.
        downsample: the shortcut's module; None passes the input through.
        groups, base_width, dilation: accepted for the sake of one signature for every block; only
            1, 64 and 1 are defined.
        norm_layer: ``channels -> module``; None is ``nn.BatchNorm2d``.

    Shapes:
        ``[N, inplanes, H, W] -> [N, planes, ceil(H/stride), ceil(W/stride)]``.

    Raises:
        ValueError: ``groups`` or ``base_width`` is not the default, or ``downsample`` is None where
            the block changes the shape.
        NotImplementedError: ``dilation`` > 1.
    """

    expansion: int = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: NormLayer | None = None,
    ) -> None:
        super().__init__()
        if groups != 1 or base_width != 64:
            raise ValueError(
                f"groups, base_width: got {groups}, {base_width}, expected 1, 64: BasicBlock has "
                "no grouped and no wide form"
            )
        if dilation != 1:
            raise NotImplementedError(f"dilation: got {dilation}, BasicBlock is defined for 1 only")
        _check_shortcut("BasicBlock", inplanes, planes, stride, downsample)
        norm_layer = norm_layer or nn.BatchNorm2d
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm_layer(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = norm_layer(planes)
        self.downsample = downsample
        self.stride = stride
        _accelerate_if_complete(self, BasicBlock)

    def forward(self, x: Tensor) -> Tensor:
        """``relu(residual branch of x + shortcut of x)``."""
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += shortcut
        return self.relu(y)


class Bottleneck(nn.Module):
    """1x1, (grouped) 3x3, 1x1 and a shortcut: the block of ResNet-50, ResNeXt and wide ResNet.

    Keys: ``conv1, bn1, conv2, bn2, conv3, bn3`` and, with a projection, ``downsample.0,
    downsample.1``.

    Args:
        inplanes: input channels.
        planes: the block's nominal width; the output has ``4 * planes`` channels, and the 3x3
            convolution has ``int(planes * base_width / 64) * groups``.
        stride: of the 3x3 convolution and of the shortcut.
        downsample: the shortcut's module; None passes the input through.
        groups: of the 3x3 convolution (ResNeXt: 32 or 64).
        base_width: channels of a group at ``planes=64`` (ResNeXt 32x4d: 4; wide ResNet: 128).
        dilation: of the 3x3 convolution, which is padded by as much.
        norm_layer: ``channels -> module``; None is ``nn.BatchNorm2d``.

    Shapes:
        ``[N, inplanes, H, W] -> [N, 4 * planes, ceil(H/stride), ceil(W/stride)]``.

    Raises:
        ValueError: ``downsample`` is None where the block changes the shape.
    """

    expansion: int = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: NormLayer | None = None,
    ) -> None:
        super().__init__()
        outplanes = planes * self.expansion
        _check_shortcut("Bottleneck", inplanes, outplanes, stride, downsample)
        norm_layer = norm_layer or nn.BatchNorm2d
        width = int(planes * (base_width / 64.0)) * groups
        self.conv1 = nn.Conv2d(inplanes, width, 1, bias=False)
        self.bn1 = norm_layer(width)
        self.conv2 = nn.Conv2d(
            width,
            width,
            3,
            stride=stride,
            padding=dilation,
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.bn2 = norm_layer(width)
        self.conv3 = nn.Conv2d(width, outplanes, 1, bias=False)
        self.bn3 = norm_layer(outplanes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride
        _accelerate_if_complete(self, Bottleneck)

    def forward(self, x: Tensor) -> Tensor:
        """``relu(residual branch of x + shortcut of x)``."""
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += shortcut
        return self.relu(y)
