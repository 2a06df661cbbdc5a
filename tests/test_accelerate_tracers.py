"""Others who trace, script and transform an accelerated model get the original."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import (
    Basic,
    Bottleneck,
    TinyNet,
    ops,
    randomised,
    runs_fused,
)
from torch import nn

import fastres

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 32, 24)


@pytest.fixture
def model() -> nn.Module:
    return randomised(TinyNet())


@pytest.fixture
def fused(model) -> nn.Module:
    return fastres.accelerate(copy.deepcopy(model))


def test_torchscript_gets_the_original(model, fused, x):
    with torch.no_grad():
        for compiled in (torch.jit.script(fused), torch.jit.trace(fused, x)):
            assert "fastres" not in str(compiled.inlined_graph)
            torch.testing.assert_close(compiled(x), model(x))
        assert runs_fused(fused, x)


def test_scripting_a_parent(model, x):
    """Scripting puts what is prepared in the parent's place of the child: right, but eager."""
    parent = nn.Sequential(fastres.accelerate(model), nn.ReLU())
    with torch.no_grad():
        expected = parent(x)
        scripted = torch.jit.script(parent)
        torch.testing.assert_close(scripted(x), expected)
        torch.testing.assert_close(parent(x), expected)
        fastres.accelerate(parent)
        assert runs_fused(parent, x)


def test_export_gets_the_original(model, fused, x):
    program = torch.export.export(fused, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    assert "fastres" not in str(program.graph)
    torch.testing.assert_close(program.module()(x[:1]), model(x[:1]))
    graph = torch.fx.symbolic_trace(fused).graph
    assert [n.target for n in graph.nodes] == [
        n.target for n in torch.fx.symbolic_trace(model).graph.nodes
    ]


def test_compile_gets_the_original(model, fused, x):
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))
    assert torch.equal(compiled(x), model(x))


def test_transforms_and_modes_get_the_original(model, fused, x):
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for m in (model, fused):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            m(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        assert fused(torch.empty(2, 3, 32, 32)).shape == (2, 5)
    parameters = dict(model.named_parameters())
    tangents = {name: torch.ones_like(p) for name, p in parameters.items()}
    results = [
        torch.func.jvp(
            lambda p, m=m: torch.func.functional_call(m, p, x), (parameters,), (tangents,)
        )
        for m in (model, fused)
    ]
    torch.testing.assert_close(results[0], results[1])
    batched = x.unsqueeze(1)
    torch.testing.assert_close(torch.vmap(fused)(batched), torch.vmap(model)(batched))


def test_functional_call(model, fused, x):
    doubled = {name: p.detach() * 2 for name, p in model.named_parameters()}
    with torch.no_grad():
        before = fused(x)
        torch.testing.assert_close(
            torch.func.functional_call(fused, doubled, x),
            torch.func.functional_call(model, doubled, x),
        )
        assert torch.equal(fused(x), before)


def test_default_device_context(fused, x):
    with torch.no_grad(), torch.device("cpu"):
        assert runs_fused(fused, x)


def test_graph_modules_and_compiled_parts(model, x):
    graph_module = torch.fx.symbolic_trace(model)
    model.layer1 = torch.fx.symbolic_trace(model.layer1)
    with torch.no_grad():
        eager = model(x)
        torch.testing.assert_close(fastres.accelerate(graph_module)(x), eager)
        assert runs_fused(graph_module, x)
        torch.testing.assert_close(fastres.accelerate(model)(x), eager)
        torch.testing.assert_close(copy.deepcopy(graph_module)(x), eager)


def test_scripted_parts(model, x):
    with torch.no_grad():
        eager = model(x)
        model.layer1 = torch.jit.script(model.layer1)
        torch.testing.assert_close(fastres.accelerate(model)(x), eager)
        assert ops(model) == {"conv_max_pool": 1, "grouped_bottleneck": 2}


def test_exported_programs(model, x):
    module = torch.export.export(model, (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(fastres.accelerate(module)(x), model(x))


def test_basic_and_bottleneck_in_untraceable_parents(x):
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)
            self.blocks = nn.ModuleList([Basic(), Basic(stride=1)])
            self.named = nn.ModuleDict({"a": nn.Conv2d(8, 16, 1), "b": Bottleneck()})

        def forward(self, images):
            out = []
            for image in images:
                y = self.stem(image)
                for block in self.blocks:
                    y = block(y) if float(y.mean()) < 1e9 else y
                out.append(self.named["b"](self.named["a"](y)))
            return out

    model = randomised(Loop())
    with torch.no_grad():
        eager = model([x, x + 1])
        torch.testing.assert_close(fastres.accelerate(model)([x, x + 1]), eager)
    assert ops(model) == {"conv_bn_act": 6, "grouped_bottleneck": 1}
    assert type(fastres.restore(model).blocks[0]) is Basic
