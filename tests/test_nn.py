"""The building blocks: torchvision's keys and results, refused arguments, scripting."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet as torchvision_resnet
from torchvision.ops import Conv2dNormActivation

import fastres
from fastres.accelerate import is_accelerated
from fastres.nn import ACTIVATIONS, BasicBlock, Bottleneck, ConvBNAct, projection


def _randomise(module):
    """Weights, statistics and affines of which none is a zero or a one."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.1, 0.9)
    return module.eval()


BLOCKS = {
    "basic": (BasicBlock, {"inplanes": 8, "planes": 8}),
    "basic stride 2": (BasicBlock, {"inplanes": 8, "planes": 16, "stride": 2}),
    "bottleneck": (Bottleneck, {"inplanes": 32, "planes": 8}),
    "bottleneck stride 2": (Bottleneck, {"inplanes": 16, "planes": 8, "stride": 2}),
    "bottleneck grouped": (
        Bottleneck,
        {"inplanes": 64, "planes": 16, "groups": 4, "base_width": 16},
    ),
    "bottleneck dilated": (Bottleneck, {"inplanes": 32, "planes": 8, "dilation": 2}),
}


def _build(block, arguments):
    outplanes = arguments["planes"] * block.expansion
    stride = arguments.get("stride", 1)
    if stride == 1 and arguments["inplanes"] == outplanes:
        return block(**arguments)
    return block(**arguments, downsample=projection(arguments["inplanes"], outplanes, stride))


@pytest.mark.parametrize("case", BLOCKS)
def test_a_block_is_torchvisions(case, assert_accurate):
    block, arguments = BLOCKS[case]
    theirs = _randomise(_build(getattr(torchvision_resnet, block.__name__), arguments))
    ours = _build(block, arguments).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, arguments["inplanes"], 9, 7)
    with torch.no_grad():
        exact = theirs.double()(x.double())
        # Four times: the 3x3 convolutions may use Winograd's algorithm.
        assert_accurate(ours(x), theirs.float()(x), exact, factor=4.0, magnitude=exact.abs)


@pytest.mark.parametrize("case", BLOCKS)
def test_a_block_trains_as_torchvisions(case):
    block, arguments = BLOCKS[case]
    theirs = _build(getattr(torchvision_resnet, block.__name__), arguments)
    ours = _build(block, arguments)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, arguments["inplanes"], 9, 7)
    for module in (ours, theirs):
        module(x).square().mean().backward()
    for (name, parameter), expected in zip(
        ours.named_parameters(), theirs.parameters(), strict=True
    ):
        torch.testing.assert_close(
            parameter.grad, expected.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    for buffer, expected in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected)


def test_a_block_serves_torchvisions_network():
    network = torchvision_resnet.ResNet(Bottleneck, [1, 1, 1, 1], num_classes=3)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_conv_bn_act_is_conv_then_bn_then_act(act):
    ours = _randomise(ConvBNAct(6, 8, 3, stride=2, groups=2, act=act, act_slope=0.3))
    x = torch.randn(2, 6, 9, 7)
    expected = ours.bn(ours.conv(x))
    expected = ACTIVATIONS[act](0.3)(expected)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel_size", "dilation"), [(1, 1), (3, 1), (5, 2), ((3, 5), (2, 1)), (7, (1, 3))]
)
def test_conv_bn_act_centres_the_kernel(kernel_size, dilation):
    ours = ConvBNAct(3, 4, kernel_size, dilation=dilation)
    theirs = Conv2dNormActivation(3, 4, kernel_size, dilation=dilation)
    assert ours.conv.padding == theirs[0].padding
    assert ours(torch.randn(1, 3, 32, 32)).shape == (1, 4, 32, 32)


def test_conv_bn_act_passes_its_arguments_on():
    ours = ConvBNAct(
        4, 8, (3, 1), stride=(2, 1), padding="valid", bias=True, norm_layer=nn.InstanceNorm2d
    )
    assert ours.conv.bias is not None
    assert ours.conv.padding == "valid"
    assert isinstance(ours.bn, nn.InstanceNorm2d)
    assert set(ours.state_dict()) == {"conv.weight", "conv.bias"}


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: ConvBNAct(3, 4, 3, act="gelu"), ValueError, "act: got 'gelu', expected one of"),
        (lambda: ConvBNAct(3, 4, 3, groups=2), ValueError, "divisible by groups"),
        (lambda: BasicBlock(8, 8, groups=2), ValueError, "groups, base_width: got 2, 64"),
        (lambda: BasicBlock(8, 8, dilation=2), NotImplementedError, "dilation: got 2"),
        (lambda: BasicBlock(8, 16), ValueError, r"downsample: .* 8 -> 16 channels"),
        (lambda: Bottleneck(32, 8, stride=2), ValueError, r"downsample: .* stride=2"),
    ],
)
def test_what_cannot_be_is_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_blocks_accelerate_themselves():
    block = _build(*BLOCKS["bottleneck grouped"]).eval()
    assert is_accelerated(block)
    assert is_accelerated(ConvBNAct(3, 4, 3))
    assert is_accelerated(BasicBlock(8, 8))
    assert type(block).__name__ == "Bottleneck"
    assert isinstance(block, Bottleneck)


def test_a_subclass_is_accelerated_when_it_is_complete():
    class WithScale(Bottleneck):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return super().forward(x) * self.scale

    block = WithScale(32, 8).eval()
    assert not is_accelerated(block)
    x = torch.randn(1, 32, 5, 5)
    with torch.no_grad():
        expected = block(x)
        torch.testing.assert_close(fastres.accelerate(block)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*jit.script.* is deprecated")
@pytest.mark.parametrize("case", BLOCKS)
def test_a_block_scripts(case):
    block, arguments = BLOCKS[case]
    module = _randomise(_build(block, arguments))
    x = torch.randn(2, arguments["inplanes"], 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(module)(x), module(x), rtol=1e-5, atol=1e-5)
