"""What training scripts do with a model, done with an accelerated one."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import Bottleneck, TinyNet, conv_bn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torch.utils.data import DataLoader, Dataset, TensorDataset
from training_step import gradients, randomised_for_training, same_steps, training_ops

import fastres


@pytest.fixture
def net() -> nn.Module:
    return randomised_for_training(TinyNet())


@pytest.fixture
def fused(net) -> nn.Module:
    return fastres.accelerate(copy.deepcopy(net))


def batch(seed: int, n: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, 33, 31, generator=generator)
    return x, torch.randint(0, 5, (n,), generator=generator)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    if not hasattr(model, "optimizer"):
        parameters = [p for p in model.parameters() if p.requires_grad]
        model.__dict__["optimizer"] = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    return model.__dict__["optimizer"]


def plain_step(model: nn.Module, i: int) -> Tensor:
    x, target = batch(i)
    loss = F.cross_entropy(model(x), target)
    optimizer_of(model).zero_grad(set_to_none=i % 2 == 0)
    loss.backward()
    optimizer_of(model).step()
    return loss


def accumulating_step(model: nn.Module, i: int) -> Tensor:
    losses = []
    for part in range(3):
        x, target = batch(3 * i + part)
        loss = F.cross_entropy(model(x), target) / 3
        loss.backward()
        losses.append(loss.detach())
    optimizer_of(model).step()
    optimizer_of(model).zero_grad()
    return torch.stack(losses)


def clipped_step(model: nn.Module, i: int) -> Tensor:
    x, target = batch(i)
    optimizer_of(model).zero_grad()
    F.cross_entropy(model(x), target, label_smoothing=0.1).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer_of(model).step()
    return norm


def validating_step(model: nn.Module, i: int) -> Tensor:
    loss = plain_step(model, i)
    model.eval()
    with torch.no_grad():
        logits = model(batch(99)[0])
    model.train()
    return torch.cat([loss.detach()[None], logits.flatten()])


def no_grad_step(model: nn.Module, i: int) -> Tensor:
    """Statistics alone, as when BatchNorms are calibrated."""
    with torch.no_grad():
        return model(batch(i)[0])


@pytest.mark.parametrize(
    "step", [plain_step, accumulating_step, clipped_step, validating_step, no_grad_step]
)
def test_steps(net, fused, step):
    same_steps(fused, net, step)


def test_step_in_channels_last(net, fused):
    same_steps(
        fused.to(memory_format=torch.channels_last),
        net,
        lambda model, i: (
            model(batch(i)[0].to(memory_format=torch.channels_last)).square().mean().backward()
        ),
    )


def test_ema_and_swa(net, fused):
    averages = [
        AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
        for m in (net, fused)
    ]
    for i in range(2):
        for model, average in zip((net, fused), averages, strict=True):
            plain_step(model, i)
            average.update_parameters(model)
    loader = DataLoader(TensorDataset(batch(7, 8)[0]), batch_size=4)
    outs = []
    for average in averages:
        update_bn(([x] for (x,) in loader), average)
        with torch.no_grad():
            outs.append(average.eval()(batch(8)[0]))
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-3, atol=1e-4)


def test_grad_scaler_and_autocast():
    """bfloat16 through the operators, about as close to float64 as eager's is."""
    net = randomised_for_training(TinyNet())
    fused = fastres.accelerate(copy.deepcopy(net))
    x, target = batch(0)
    found = []
    for model in (net, fused, copy.deepcopy(net).double()):
        double = next(model.parameters()).dtype == torch.float64
        scaler = torch.amp.GradScaler("cpu", init_scale=128.0, enabled=not double)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not double):
            out = model(x.double() if double else x)
            loss = F.cross_entropy(out.float() if not double else out, target)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer_of(model))
        scaler.step(optimizer_of(model))
        scaler.update()
        assert double or out.dtype == torch.bfloat16
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    eager, ours, exact = found

    def errors(values: list[Tensor]) -> Tensor:
        pairs = zip(values, exact, strict=True)
        return torch.stack([(v.double() - e).norm() / e.norm() for v, e in pairs])

    assert (errors(ours).mean() <= 2 * errors(eager).mean()).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        counts = training_ops(fused, x)
    assert counts["conv_stats_backward"] == 11
    assert "aten::convolution" not in counts
    assert all(p.grad.dtype == torch.float32 for p in fused.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_parameters(dtype):
    net = randomised_for_training(Bottleneck(out=24)).to(dtype)
    fused = fastres.accelerate(copy.deepcopy(net))
    x = torch.randn(4, 16, 9, 7).to(dtype)
    exact = gradients(copy.deepcopy(net).double(), x.double())
    ours, theirs = gradients(fused, x), gradients(net, x)
    for name in exact:
        assert ours[name].dtype == dtype
        allowed = 2 * (theirs[name] - exact[name]).norm() + 0.01 * exact[name].norm()
        assert (ours[name] - exact[name]).norm() <= allowed, name


def test_double_runs_as_it_was(net, fused):
    x = batch(0)[0].double()
    ours, theirs = gradients(fused.double(), x), gradients(net.double(), x)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 16), nn.ReLU())
        self.blocks = nn.ModuleList([Bottleneck(), Bottleneck(groups=2, out=24)])
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x.mean((2, 3))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    net = randomised_for_training(Checkpointed(reentrant))
    fused = fastres.accelerate(copy.deepcopy(net))
    x = batch(0)[0]
    for _ in range(2):
        ours, theirs = gradients(fused, x), gradients(net, x)
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5, msg=name)
    counts = training_ops(fused, x)
    # The stem's once, and those of the blocks again in backward.
    assert counts["conv_stats"] == 1 + 2 * 7
    assert counts["conv_stats_backward"] == 8
    assert "aten::convolution" not in counts


def test_a_checkpoint_around_the_model(net, fused):
    x = batch(0)[0].requires_grad_()
    found = []
    for model in (net, fused):
        checkpoint(model, x, use_reentrant=False).square().sum().backward()
        found.append([x.grad.clone(), *(p.grad for p in model.parameters())])
        x.grad = None
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    blocks = fused.layer2
    checkpoint_sequential(blocks, 2, torch.randn(2, 16, 9, 9), use_reentrant=False).sum().backward()


def test_hooks_fire(net, fused):
    seen = {}
    for name, model in (("eager", net), ("fused", fused)):
        calls = seen[name] = []
        model.layer1[0].bn1.register_forward_hook(
            lambda m, args, out, to=calls: to.append(out.detach())
        )
        model.layer2[0].register_full_backward_hook(
            lambda m, grad_in, grad_out, to=calls: to.append(grad_in[0].detach())
        )
        model.layer2[1].conv2.register_forward_pre_hook(
            lambda m, args, to=calls: to.append(args[0].detach().clone())
        )
        model.conv1.weight.register_hook(lambda grad, to=calls: to.append(grad.clone()))
    ours, theirs = (gradients(m, batch(0)[0]) for m in (fused, net))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5, msg=name)
    assert len(seen["eager"]) == len(seen["fused"]) == 4
    for a, b in zip(seen["fused"], seen["eager"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert training_ops(fused, batch(0)[0])["conv_stats"] > 5


def test_retain_graph_and_the_input_alone(net, fused):
    x = batch(0)[0].requires_grad_()
    for model in (net, fused):
        model.requires_grad_(False)
    found = []
    for model in (net, fused):
        loss = model(x).square().sum()
        first = torch.autograd.grad(loss, x, retain_graph=True)
        second = torch.autograd.grad(loss, x)
        assert torch.equal(*first, *second)
        found.append(first[0])
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, x)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_double_backward(net, fused):
    """A gradient penalty, as in WGAN-GP."""
    found = []
    for model in (net, fused):
        x = batch(0)[0].requires_grad_()
        model.zero_grad()
        (grad,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        (grad.flatten(1).norm(dim=1) - 1).square().mean().backward()
        zeros = [torch.zeros_like(p) for p in model.parameters()]
        pairs = zip(model.parameters(), zeros, strict=True)
        found.append([zero if p.grad is None else p.grad for p, zero in pairs])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-4)


def test_compile_over_an_accelerated_model(net, fused):
    compiled = torch.compile(fused, backend="aot_eager")
    ours, theirs = gradients(compiled, batch(0)[0]), gradients(net, batch(0)[0])
    for name in theirs:
        other = ours[name if name == "input" else f"_orig_mod.{name}"]
        torch.testing.assert_close(other, theirs[name], rtol=1e-3, atol=1e-5, msg=name)


def test_bits_are_the_same_every_time(fused, set_threads):
    states = []
    for threads in (1, 1, 2, 2):
        set_threads(threads)
        model = copy.deepcopy(fused)
        for i in range(2):
            plain_step(model, i)
        states.append(model.state_dict())
    for first, second in (states[:2], states[2:]):
        assert all(torch.equal(first[name], second[name]) for name in first)


class _Embeddings(Dataset[Tensor]):
    """Runs a model in the worker, a fork of a process whose threads it does not have."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return self._model(batch(index, 1)[0])[0]


def test_data_loader_workers(net, fused, set_threads):
    set_threads(2)
    plain_step(fused, 0)  # with the parent's threads under way
    net.load_state_dict(fused.state_dict())
    found = []
    for model in (fused, net):
        loader = DataLoader(
            _Embeddings(model.eval()), batch_size=2, num_workers=2, multiprocessing_context="fork"
        )
        found.append(torch.cat(list(loader)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    plain_step(fused.train(), 1)


def test_copies_and_switches(net, fused):
    """Every change of mode, parameters or structure in the middle of training."""
    for i, change in enumerate([
        lambda m: None,
        lambda m: m.layer1.eval(),
        lambda m: m.layer1.requires_grad_(False),
        lambda m: m.train(),
        lambda m: setattr(m.layer1[0].bn1, "momentum", 0.5),
        lambda m: setattr(m.layer2[1], "downsample", conv_bn(16, 32, 1, stride=2)),
        lambda m: m.conv1.weight.data.mul_(0.5),
        lambda m: m.eval(),
    ]):  # fmt: skip
        torch.manual_seed(i)
        change(net)
        torch.manual_seed(i)
        change(fused)
        ours, theirs = gradients(fused, batch(i)[0]), gradients(net, batch(i)[0])
        assert ours.keys() == theirs.keys()
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=2e-3, atol=1e-4, msg=name)
    other = copy.deepcopy(fused)
    gradients(other, batch(0)[0])
    assert training_ops(other, batch(0)[0])["conv_stats"] == 11
