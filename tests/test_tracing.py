"""The operators under everything that traces: opcheck, TorchScript, export, torch.compile."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from bottleneck_case import BLOCKS, block_arguments, make_block
from conv_case import PATHS, make_inputs
from torch import Tensor, nn

from fastres import ops, reference

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated"),
]

OPCHECK_PATHS = (
    "1x1/2",
    "3x3 winograd",
    "3x3 groups of 4",
    "asymmetric padding",
    "groups of 3 to 5",
)


class Network(nn.Module):
    """A strided convolution and a bottleneck, by their operators and constants."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("packed", ops.pack_conv_weight(torch.randn(40, 3, 7, 7) / 12))
        self.register_buffer("shift", torch.randn(40))
        case = BLOCKS["ResNeXt 4"]
        _, constants = make_block(case)
        packed1, shift1, packed2, shift2, packed3, shift3 = block_arguments(case, constants)
        self.register_buffer("packed1", packed1)
        self.register_buffer("packed2", packed2)
        self.register_buffer("packed3", packed3)
        self.register_buffer("shift1", shift1)
        self.register_buffer("shift2", shift2)
        self.register_buffer("shift3", shift3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.ops.fastres.conv_bn_act(
            x, self.packed, self.shift, None, [7, 7], [2, 2], [3, 3, 3, 3], [1, 1], 1, "relu", 0.0
        )
        return torch.ops.fastres.grouped_bottleneck(
            x,
            self.packed1,
            self.shift1,
            self.packed2,
            self.shift2,
            self.packed3,
            self.shift3,
            None,
            None,
            [1, 1],
            [1, 1],
            5,
            "relu",
        )


@pytest.fixture(scope="module")
def network(backend: str) -> Network:
    torch.manual_seed(0)
    return Network().eval()


def save_and_load(save: Callable, load: Callable, program: object) -> object:
    buffer = io.BytesIO()
    save(program, buffer)
    buffer.seek(0)
    return load(buffer)


@pytest.mark.parametrize("name", OPCHECK_PATHS)
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_conv(name, grad):
    case = PATHS[name]
    for layout, residual_layout, act in (("nchw", "sliced", "relu"), ("sliced", None, "silu")):
        inputs = make_inputs(case, layout=layout, residual_layout=residual_layout)
        packed = ops.pack_conv_weight(inputs.weight, None, case.groups, case.algorithm)
        x = inputs.x.clone().requires_grad_(grad)
        arguments = (x, packed, inputs.shift.requires_grad_(grad), inputs.residual)
        geometry = tuple(case.arguments().values())
        torch.library.opcheck(
            torch.ops.fastres.conv_bn_act.default, (*arguments, *geometry, act, 0.1)
        )


@pytest.mark.parametrize(
    ("name", "act", "grad"),
    [
        ("ResNeXt 4", "relu", False),
        ("ResNeXt 4", "silu", True),
        ("ResNeXt 4, /2", "relu", True),
        ("dilated", "leaky_relu", True),
    ],
)
def test_opcheck_bottleneck(name, act, grad):
    case = BLOCKS[name]
    x, constants = make_block(case)
    arguments = block_arguments(case, constants)
    down = () if case.down else (None, None)
    geometry = ((case.stride,) * 2, (case.dilation,) * 2, case.groups, act)
    torch.library.opcheck(
        torch.ops.fastres.grouped_bottleneck.default,
        (x.requires_grad_(grad), *arguments, *down, *geometry),
    )


@pytest.mark.parametrize("name", ["1x1", "3x3 winograd", "3x3 groups of 4", "groups of 6"])
def test_opcheck_pack(name):
    case = PATHS[name]
    weight = make_inputs(case).weight
    for scale in (None, torch.rand(weight.shape[0])):
        arguments = (weight, scale, case.groups, case.algorithm)
        torch.library.opcheck(torch.ops.fastres.pack_conv_weight.default, arguments)


def test_opcheck_content_hash():
    # It returns what it read, which no fake tensor has.
    torch.library.opcheck(
        torch.ops.fastres.content_hash.default,
        ([torch.randn(3), torch.randn(2, 2)],),
        test_utils=("test_schema", "test_autograd_registration"),
    )
    with torch._subclasses.FakeTensorMode(), pytest.raises(RuntimeError, match="cannot be traced"):
        ops.content_hash([torch.empty(3)])


def test_fake_outputs_are_like_real_ones():
    for case in PATHS.values():
        inputs = make_inputs(case, torch.bfloat16)
        packed = ops.pack_conv_weight(inputs.weight, None, case.groups)
        arguments = (inputs.x, packed, inputs.shift)
        real = ops.conv_bn_act(*arguments, **case.arguments())
        with torch._subclasses.FakeTensorMode() as mode:
            fake = ops.conv_bn_act(*map(mode.from_tensor, arguments), **case.arguments())
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


def test_fake_checks_what_it_can():
    x, shift = torch.randn(1, 4, 5, 5, device="meta"), torch.zeros(4, device="meta")
    packed = reference.pack_conv_weight(torch.randn(4, 4, 3, 3), None, 1).to("meta")
    assert ops.conv_bn_act(x, packed, shift, kernel_size=3).shape == (1, 4, 3, 3)
    with pytest.raises(ValueError, match="conv_bn_act: stride"):
        ops.conv_bn_act(x, packed, shift, kernel_size=3, stride=0)
    with pytest.raises(ValueError, match="conv_bn_act: groups=3 does not divide the 4 input"):
        ops.conv_bn_act(x, packed, shift, kernel_size=3, groups=3)


@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript(network, how):
    x = torch.randn(2, 3, 17, 13)
    program = torch.jit.script(network) if how == "script" else torch.jit.trace(network, x)
    loaded = save_and_load(torch.jit.save, torch.jit.load, program)
    for module in (program, loaded, torch.jit.freeze(torch.jit.script(network))):
        for batch in (1, 3):
            x = torch.randn(batch, 3, 17, 13)
            assert torch.equal(module(x), network(x))


def test_torchscript_with_gradients(network):
    scripted = torch.jit.script(network)
    x, y = (torch.ones(2, 3, 9, 9, requires_grad=True) for _ in range(2))
    for _ in range(3):  # the profiling executor changes the program after the first runs
        scripted(x).sum().backward()
        network(y).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_export_with_a_dynamic_batch(network):
    x = torch.randn(2, 3, 17, 13)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (x,), dynamic_shapes={"x": {0: batch}}, strict=True)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets == {"fastres.conv_bn_act.default", "fastres.grouped_bottleneck.default"}
    loaded = save_and_load(torch.export.save, torch.export.load, program)
    for module in (program.module(), loaded.module()):
        for size in (1, 2, 5):
            x = torch.randn(size, 3, 17, 13)
            assert torch.equal(module(x), network(x))


def test_compile_of_the_public_functions():
    case = PATHS["3x3 groups of 4, /2"]
    inputs = make_inputs(case, residual_layout="nchw")
    packed = ops.pack_conv_weight(inputs.weight, inputs.scale, case.groups)

    def function(x: Tensor, residual: Tensor) -> Tensor:
        y = ops.conv_bn_act(x, packed, inputs.shift, residual, **case.arguments(), act="relu")
        return y * 2

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(inputs.x, inputs.residual), function(inputs.x, inputs.residual))
    grads = []
    for variant in (compiled, function):
        x = inputs.x.clone().requires_grad_()
        variant(x, inputs.residual).square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


def test_compile_under_autocast():
    case = PATHS["3x3"]
    inputs = make_inputs(case)
    packed = ops.pack_conv_weight(inputs.weight, inputs.scale)

    def function(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return ops.conv_bn_act(x, packed, inputs.shift, **case.arguments(), act="relu")

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert compiled(inputs.x).dtype == torch.bfloat16
    assert torch.equal(compiled(inputs.x), function(inputs.x))


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile_with_a_dynamic_batch(network, compiler):
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=compiler)
    for batch in (2, 3, 5):
        x = torch.randn(batch, 3, 17, 13)
        torch.testing.assert_close(compiled(x), network(x), rtol=0, atol=0)
    torch._dynamo.reset()
