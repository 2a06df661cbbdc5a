"""An accelerated model follows every change of its parameters and of its structure."""

from __future__ import annotations

import copy
import io
import pickle
import types
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from nets import Bottleneck, TinyNet, ops, randomised, runs_fused
from torch import nn

import fastres


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 32, 24)


def _load_state_dict(m: nn.Module) -> None:
    torch.manual_seed(1)
    m.load_state_dict(randomised(TinyNet()).state_dict())


def _load_assigned(m: nn.Module) -> None:
    torch.manual_seed(1)
    m.load_state_dict(randomised(TinyNet()).state_dict(), assign=True)


def _sgd(m: nn.Module) -> None:
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    with torch.enable_grad():
        m(torch.ones(1, 3, 32, 32)).sum().backward()
    optimizer.step()


def _fused_adam(m: nn.Module) -> None:
    optimizer = torch.optim.Adam(m.parameters(), lr=0.1, fused=True)
    with torch.enable_grad():
        m(torch.ones(1, 3, 32, 32)).sum().backward()
    optimizer.step()


def _ema(m: nn.Module) -> None:
    torch.manual_seed(1)
    other = randomised(TinyNet())
    for a, b in zip(m.parameters(), other.parameters(), strict=True):
        a.data.lerp_(b.data, 0.1)


def _train_batchnorm(m: nn.Module) -> None:
    m.train()
    with torch.enable_grad():
        m(torch.ones(2, 3, 32, 32))
    m.eval()


def _replace_parameter(m: nn.Module) -> None:
    m.conv1.weight = nn.Parameter(m.conv1.weight * 2)


def _poke(m: nn.Module) -> None:
    m.layer2[0].conv2.weight.data[3, 1, 2, 0] += 1


def _poke_numpy(m: nn.Module) -> None:
    m.layer2[0].conv2.weight.detach().numpy()[0, 0, 0, 0] += 1


def _transpose_storage(m: nn.Module) -> None:
    """The same bytes in another order, and the same tensor object."""
    weight = m.layer1[0].conv1.weight
    weight.data = weight.data.transpose(0, 1)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "load_state_dict": _load_state_dict,
    "load_state_dict(assign=True)": _load_assigned,
    "optimizer step": _sgd,
    "fused optimizer step": _fused_adam,
    "EMA": _ema,
    "p.data.mul_": lambda m: m.conv1.weight.data.mul_(2),
    "p.data = t": lambda m: setattr(m.conv1.weight, "data", torch.randn(8, 3, 3, 3)),
    "p.data = transposed": _transpose_storage,
    "one element through .data": _poke,
    "one element through numpy": _poke_numpy,
    "in place": lambda m: m.conv1.weight.mul_(2),
    "swapped elements": lambda m: m.conv1.weight.copy_(m.conv1.weight.flip(0)),
    "negative zero and sign": lambda m: m.conv1.weight.neg_(),
    "new parameter": _replace_parameter,
    "bias": lambda m: m.layer1[1].bias.data.add_(1),
    "BatchNorm weight": lambda m: m.bn1.weight.data.mul_(3),
    "BatchNorm bias": lambda m: m.bn1.bias.data.add_(1),
    "running mean": lambda m: m.bn1.running_mean.data.add_(1),
    "running var": lambda m: m.bn1.running_var.data.mul_(2),
    "eps": lambda m: setattr(m.bn1, "eps", 0.5),
    "trained BatchNorm": _train_batchnorm,
    "reset_running_stats": lambda m: m.bn1.reset_running_stats(),
    "unfused parameter": lambda m: m.fc.weight.data.mul_(2),
    "channels_last": lambda m: m.to(memory_format=torch.channels_last),
    "requires_grad": lambda m: m.requires_grad_(False),
    "apply": lambda m: m.apply(lambda c: c.reset_parameters() if hasattr(c, "groups") else None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_parameters(name, x):
    model = randomised(TinyNet())
    fused = fastres.accelerate(copy.deepcopy(model))
    with torch.no_grad():
        fused(x)
        for m in (model, fused):
            torch.manual_seed(2)
            CHANGES[name](m)
        torch.testing.assert_close(fused(x), model(x))
        assert runs_fused(fused, x)


def test_every_convolution_is_looked_at(x):
    model = randomised(TinyNet())
    fused = fastres.accelerate(copy.deepcopy(model))
    with torch.no_grad():
        for (name, p), q in zip(fused.named_parameters(), model.parameters(), strict=True):
            before = fused(x)
            for tensor in (p, q):
                tensor.data.view(-1)[-1] += 0.5
            torch.testing.assert_close(fused(x), model(x), msg=name)
            assert not torch.equal(fused(x), before), name


VERSIONED = [
    "load_state_dict", "load_state_dict(assign=True)", "optimizer step", "p.data = t", "in place",
    "new parameter", "eps", "trained BatchNorm", "BatchNorm weight", "running mean", "bias",
    "reset_running_stats", "unfused parameter",
]  # fmt: skip


@pytest.mark.parametrize("name", VERSIONED)
def test_version_staleness(name, x):
    model = randomised(TinyNet())
    fused = fastres.accelerate(copy.deepcopy(model), staleness="version")
    with torch.no_grad():
        fused(x)
        for m in (model, fused):
            torch.manual_seed(2)
            CHANGES[name](m)
        torch.testing.assert_close(fused(x), model(x))


def test_version_staleness_is_blind_to_data_as_documented(x):
    fused = fastres.accelerate(randomised(TinyNet()), staleness="version")
    with torch.no_grad():
        before = fused(x)
        fused.conv1.weight.data.mul_(2)
        assert torch.equal(fused(x), before)


def test_version_staleness_of_inference_tensors(x):
    with torch.inference_mode():
        model = fastres.accelerate(randomised(TinyNet()), staleness="version")
        before = model(x)
        model.conv1.weight.mul_(2)
        assert not torch.equal(model(x), before)


def test_dtype_changes(x):
    model = randomised(TinyNet())
    fused = fastres.accelerate(copy.deepcopy(model))
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float32):
            for m in (model, fused):
                m.to(dtype)
            out, eager = fused(x.to(dtype)), model(x.to(dtype))
            assert out.dtype == dtype
            torch.testing.assert_close(out, eager, rtol=0.05, atol=0.05)


# ---- structure -----------------------------------------------------------------------------------


def _new_head(m: nn.Module) -> None:
    m.fc = nn.Linear(32, 7)


def _new_stem(m: nn.Module) -> None:
    m.conv1 = nn.Conv2d(3, 8, 5, stride=2, padding=2)


def _no_batchnorm(m: nn.Module) -> None:
    m.bn1 = nn.Identity()


def _longer(m: nn.Module) -> None:
    m.layer2.append(nn.Conv2d(32, 32, 1))


def _inserted(m: nn.Module) -> None:
    m.layer2.insert(1, Bottleneck().eval())


def _stride(m: nn.Module) -> None:
    m.layer2[0].conv2.stride = (2, 2)
    m.layer2[0].downsample = nn.MaxPool2d(2, 2)


def _dilation(m: nn.Module) -> None:
    m.layer2[1].conv2.dilation = m.layer2[1].conv2.padding = (2, 2)


def _activation(m: nn.Module) -> None:
    m.layer2[0].act = nn.SiLU()


def _instance_forward(m: nn.Module) -> None:
    m.layer1.forward = m.layer1[1].forward


def _frozen_batchnorm(m: nn.Module) -> None:
    m.bn1.track_running_stats = False
    m.bn1.running_mean = m.bn1.running_var = None


def _flag(m: nn.Module) -> None:
    m.layer1[0].add = torch.sub


def _tied(m: nn.Module) -> None:
    m.layer1[0].conv2 = m.layer1[0].conv1


def _wider(m: nn.Module) -> None:
    m.layer1[0].conv1.weight.data = torch.randn(12, 8, 3, 3)
    m.layer1[0].conv2.weight.data = torch.randn(8, 12, 3, 3)
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(m.layer1[0].bn1, name).data = torch.rand(12)


def _statistics_removed(m: nn.Module) -> None:
    m.bn1.running_mean = m.bn1.running_var = None


def _affine_removed(m: nn.Module) -> None:
    m.bn1.weight = m.bn1.bias = None


def _parameter_removed(m: nn.Module) -> None:
    m.layer1[1].bias = None


def _bias_added(m: nn.Module) -> None:
    m.conv1.bias = nn.Parameter(torch.ones(8))


STRUCTURES = [
    _new_head, _new_stem, _no_batchnorm, _longer, _inserted, _stride, _dilation, _activation,
    _instance_forward, _frozen_batchnorm, _flag, _tied, _parameter_removed, _bias_added,
    _wider, _statistics_removed, _affine_removed,
]  # fmt: skip


@pytest.mark.parametrize("change", STRUCTURES)
def test_structure(change, x):
    model = randomised(TinyNet())
    fused = fastres.accelerate(copy.deepcopy(model))
    with torch.no_grad():
        fused(x)
        for m in (model, fused):
            torch.manual_seed(2)
            change(m)
        torch.testing.assert_close(fused(x), model(x))
        assert runs_fused(fused, x)


@dataclass
class _Config:
    act: str = "relu"
    inner: _Config | types.SimpleNamespace | None = None


class _Configured(nn.Module):
    """Reads what it computes from the end of nested configs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.config = _Config(inner=types.SimpleNamespace(inner=_Config(inner=_Config())))

    def forward(self, x):
        return getattr(torch, self.config.inner.inner.inner.act)(self.conv(x))


def test_nested_configs(x):
    fused = fastres.accelerate(_Configured())
    with torch.no_grad():
        before = fused(x)
        fused.config.inner.inner.inner.act = "tanh"
        after = fused(x)
        assert not torch.equal(before, after)
        torch.testing.assert_close(after, torch.tanh(fused.conv(x)))
        fused.config.inner.inner = types.SimpleNamespace(inner=_Config("relu"))
        torch.testing.assert_close(fused(x), before)


def test_train_and_eval_alternate(x):
    model = randomised(TinyNet())
    fused = fastres.accelerate(copy.deepcopy(model))
    for _ in range(3):
        for m in (model, fused):
            m.train()
        torch.testing.assert_close(fused(x), model(x))
        with torch.no_grad():
            for m in (model, fused):
                m.eval()
            torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)
            assert runs_fused(fused, x)


def test_training_loop_with_validation(x):
    """Losses follow eager's, step by step, with accelerated validation in between."""
    model = randomised(TinyNet())
    fused = fastres.accelerate(copy.deepcopy(model))
    losses = []
    for m in (model, fused):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9)
        curve = []
        for _ in range(4):
            m.train()
            loss = m(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            m.eval()
            with torch.no_grad():
                curve += [loss.item(), m(x).square().mean().item()]
        losses.append(curve)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-6)


# ---- copies --------------------------------------------------------------------------------------


def _through_pickle(m: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(m))


def _through_torch_save(m: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(m, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def _through_state_dict(m: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(m.state_dict(), buffer)
    buffer.seek(0)
    other = fastres.accelerate(TinyNet().eval())
    other.load_state_dict(torch.load(buffer, weights_only=True))
    return other


def _averaged(m: nn.Module) -> nn.Module:
    averaged = torch.optim.swa_utils.AveragedModel(m)
    averaged.update_parameters(m)
    return averaged.module


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, _through_pickle, _through_torch_save, _through_state_dict, _averaged],
)
def test_copies_live_on_their_own(duplicate, x):
    fused = fastres.accelerate(randomised(TinyNet()), fuse_blocks=False)
    with torch.no_grad():
        expected = fused(x)
        other = duplicate(fused)
        assert type(other).__mro__[1] is TinyNet
        if duplicate is not _through_state_dict:
            assert ops(other) == {"conv_max_pool": 1, "conv_bn_act": 10}  # the options came along
        torch.testing.assert_close(other(x), expected)
        other.conv1.weight.data.mul_(2)
        changed = other(x)
        assert not torch.equal(changed, expected)
        assert torch.equal(fused(x), expected)
        fused.conv1.weight.data.mul_(3)
        fused(x)
        assert torch.equal(other(x), changed)
        assert runs_fused(other, x)


def test_shallow_copy(x):
    fused = fastres.accelerate(randomised(TinyNet()))
    with torch.no_grad():
        expected = fused(x)
        other = copy.copy(fused)
        torch.testing.assert_close(other(x), expected)
        other.conv1.weight.data.mul_(2)  # shared
        torch.testing.assert_close(fused(x), other(x))


def test_pickles_hold_no_derived_state(x):
    model = randomised(TinyNet())
    plain = len(pickle.dumps(model))
    with torch.no_grad():
        fastres.accelerate(model)(x)
    assert len(pickle.dumps(model)) < plain + 500
    assert len(pickle.dumps({"model": model})) < plain + 500


class _Picky(nn.Module):
    """Pickles and copies in its own way."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.conv = nn.Conv2d(3, width, 3)

    def forward(self, x):
        return self.conv(x)

    def __getstate__(self):
        state = self.__dict__.copy()
        state["note"] = "pickled"
        return state

    def __deepcopy__(self, memo):
        other = type(self)(self.width)
        other.load_state_dict(self.state_dict())
        return other


def test_classes_with_their_own_ways_to_copy(x):
    fused = fastres.accelerate(_Picky(4))
    with torch.no_grad():
        expected = fused(x)
        other = copy.deepcopy(fused)
        torch.testing.assert_close(other(x), expected)
        assert runs_fused(other, x)
        loaded = _through_pickle(fused)
        assert loaded.note == "pickled"
        torch.testing.assert_close(loaded(x), expected)
