"""freeze: a graph of operators and constants that goes anywhere."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections import Counter

import pytest
import torch
import torchvision
from nets import Basic, Function, TinyNet, conv_bn, randomised
from torch import fx, nn
from torch.nn import functional as F

import fastres

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 32, 24)


@pytest.fixture
def model() -> nn.Module:
    return randomised(TinyNet())


@pytest.fixture
def frozen(model) -> fx.GraphModule:
    return fastres.freeze(model)


def _calls(graph_module: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph_module.graph.nodes if "fastres" in str(node.target)]


def test_graph_of_operators(model, frozen, x, assert_accurate):
    assert Counter(_calls(frozen)) == {
        "fastres.conv_max_pool": 1,
        "fastres.conv_bn_act": 3,
        "fastres.bottleneck_chain": 1,
        "fastres.avg_pool_linear": 1,
    }
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        assert_accurate(frozen(x), model(x), exact, magnitude=exact.abs)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not frozen.training


def test_same_from_an_accelerated_model(model, frozen, x):
    with torch.no_grad():
        again = fastres.freeze(fastres.accelerate(model))
        assert torch.equal(again(x), frozen(x))


def test_without_blocks(model, frozen, x):
    units = fastres.freeze(model, fuse_blocks=False)
    assert set(_calls(units)) == {
        "fastres.conv_bn_act",
        "fastres.conv_max_pool",
        "fastres.avg_pool_linear",
    }
    torch.testing.assert_close(units(x), frozen(x))


def test_independent_of_the_model(model, frozen, x):
    before = frozen(x)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    assert torch.equal(frozen(x), before)
    shared = {t.data_ptr() for t in model.state_dict().values()}
    assert not shared & {t.data_ptr() for t in frozen.state_dict().values()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_script(model, x, layout):
    frozen = fastres.freeze(model.to(memory_format=layout), x)
    scripted = torch.jit.script(frozen)
    assert torch.equal(scripted(x), frozen(x))
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    assert torch.equal(torch.jit.load(buffer)(x), frozen(x))
    assert torch.equal(torch.jit.freeze(scripted.eval())(x), frozen(x))


def test_trace(frozen, x):
    assert torch.equal(torch.jit.trace(frozen, x)(x[:1]), frozen(x[:1]))


def test_export_with_a_dynamic_batch(frozen, x):
    program = torch.export.export(frozen, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    assert "fastres.bottleneck_chain" in str(program.graph)
    assert torch.equal(program.module()(x[:1]), frozen(x[:1]))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    assert torch.equal(torch.export.load(buffer).module()(x), frozen(x))


def test_compile(frozen, x):
    compiled = torch.compile(frozen, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), frozen(x))


def test_copies(frozen, x):
    buffer = io.BytesIO()
    torch.save(frozen, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(frozen),
        pickle.loads(pickle.dumps(frozen)),
        torch.load(buffer, weights_only=False),
    ):
        assert torch.equal(other(x), frozen(x))
    other.load_state_dict(frozen.state_dict())


def test_loads_without_the_models_class(frozen, x, tmp_path):
    torch.save((frozen, x, frozen(x)), tmp_path / "frozen.pt")
    code = (
        "import sys, torch, fastres\n"
        "frozen, x, expected = torch.load(sys.argv[1], weights_only=False)\n"
        "torch.testing.assert_close(frozen(x), expected)\n"
        "assert 'nets' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "frozen.pt")], check=True)


def test_gradients_flow_to_the_input(model, frozen, x):
    grads = []
    for m in (model, frozen):
        leaf = x.clone().requires_grad_()
        m(leaf).square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-6)


def test_train_has_no_effect(x):
    def forward(m, x):
        x = F.dropout(m.bn(x), 0.5, training=m.training)
        return m.drop(F.relu(m.tail(m.conv(x).sigmoid())))

    model = Function(
        forward,
        bn=nn.BatchNorm2d(3),  # follows no convolution
        conv=nn.Conv2d(3, 8, 3),
        tail=nn.BatchNorm2d(8),
        drop=nn.Dropout(0.5),
    )
    frozen = fastres.freeze(randomised(model))
    expected = model(x)
    torch.testing.assert_close(frozen(x), expected)
    before = {name: t.clone() for name, t in frozen.state_dict().items()}
    frozen.train()
    torch.testing.assert_close(frozen(x), expected)
    torch.testing.assert_close(torch.jit.script(frozen).train()(x), expected)
    assert all(torch.equal(t, before[name]) for name, t in frozen.state_dict().items())


def test_memory_format(x):
    model = randomised(nn.Sequential(conv_bn(3, 8), Basic()))
    channels_last = x.contiguous(memory_format=torch.channels_last)
    assert fastres.freeze(model)(x).is_contiguous()
    frozen = fastres.freeze(model, channels_last)
    assert frozen(channels_last).stride() == model(channels_last).stride()
    assert not any(node.target == "contiguous" for node in frozen.graph.nodes)
    model.to(memory_format=torch.channels_last)
    for example in (None, x):
        assert fastres.freeze(model, example)(x).stride() == model(x).stride()


def test_arguments(x):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x, y=None, scale=1):
            out = self.conv(x) * scale
            return {"out": out if y is None else out + y, "both": (x, [out])}

    model = Two()
    frozen = fastres.freeze(model.eval(), (x, x, 2))
    result, eager = frozen(x, x + 1), model(x, x + 1, 2)
    torch.testing.assert_close(result["out"], eager["out"])
    torch.testing.assert_close(result["both"][1][0], eager["both"][1][0])
    torch.testing.assert_close(fastres.freeze(model)(x)["out"], model(x)["out"])
    with pytest.raises(ValueError, match="example_input must hold tensors and plain constants"):
        fastres.freeze(model, (x, [x]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_dtypes(dtype, model, x):
    model.to(dtype)
    out = fastres.freeze(model)(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out, model(x.to(dtype)), rtol=0.05, atol=0.05)


def test_modules_with_hooks_are_kept(model, x):
    model.layer1.register_forward_hook(lambda module, args, out: out * 2)
    torch.testing.assert_close(fastres.freeze(model)(x), model(x))


def test_untraced_parts_are_kept(x):
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    model = randomised(nn.Sequential(*conv_bn(3, 4), Branch(), *conv_bn(4, 4)))
    frozen = fastres.freeze(model)
    assert len(_calls(frozen)) == 2
    torch.testing.assert_close(frozen(x), model(x))


def test_detection_backbone():
    model = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None
    )
    x = torch.randn(1, 3, 64, 64)
    out, eager = fastres.freeze(randomised(model))(x), model(x)
    assert list(out) == list(eager)
    torch.testing.assert_close(out["0"], eager["0"], rtol=1e-3, atol=1e-4)


def test_errors(model):
    with pytest.raises(ValueError, match=r"model is in training mode, expected model\.eval"):
        fastres.freeze(TinyNet())
    with pytest.raises(ValueError, match=r"no kernel for torch\.float64 weights"):
        fastres.freeze(model.double())
    with pytest.raises(ValueError, match="no kernel for device 'meta'"):
        fastres.freeze(model.to("meta"))
    whole = Function(lambda m, x: m.conv(x) if x.sum() > 0 else x, conv=nn.Conv2d(3, 3, 1)).eval()
    with pytest.raises(ValueError, match=r"cannot be traced as a whole .*it branches on a value"):
        fastres.freeze(whole)
