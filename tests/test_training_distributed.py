"""Two processes that train an accelerated model together: DDP and SyncBatchNorm."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nets import TinyNet
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from training_step import randomised_for_training, training_ops

import fastres
from fastres.sync_batch_norm import merge_statistics

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)

WORLD = 2


def run(worker: Callable[..., None], folder: Path) -> list[dict[str, Tensor]]:
    """What each of the processes that run ``worker(rank, folder)`` saved."""
    multiprocessing.spawn(_start, (worker, folder), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def _start(rank: int, worker: Callable[..., None], folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=WORLD)
    worker(rank, folder)
    distributed.destroy_process_group()


def make() -> nn.Module:
    torch.manual_seed(0)
    return randomised_for_training(TinyNet())


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, 33, 31, generator=generator), torch.tensor([0, 1, 2, 3, 4, 0])


def results(model: nn.Module) -> dict[str, Tensor]:
    gradients = {f"grad of {name}": p.grad for name, p in model.named_parameters()}
    return {**gradients, **model.state_dict()}


def _train_with_ddp(rank: int, folder: Path) -> None:
    """Accelerated and eager, on a part of the batch each, two steps."""
    x, target = (t[3 * rank : 3 * rank + 3] for t in batch())
    found = {}
    for name, model in (("eager", make()), ("fused", fastres.accelerate(make()))):
        wrapped = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(wrapped(x), target).backward()
            optimizer.step()
        found.update({f"{name}/{key}": value for key, value in results(model).items()})
    found["convolutions"] = torch.tensor(training_ops(model, x)["conv_stats"])
    torch.save(found, folder / f"{rank}.pt")


def test_ddp_gradients_are_eagers(tmp_path):
    first, second = run(_train_with_ddp, tmp_path)
    assert first["convolutions"] == 11
    for name, ours in first.items():
        if name.startswith("fused/"):
            theirs = first[name.replace("fused/", "eager/")]
            torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-5, msg=name)
            if "grad of" in name:
                assert torch.equal(ours, second[name]), name


def _train_with_sync_batch_norm(rank: int, folder: Path) -> None:
    """Of six images, four here and two there: the counts differ."""
    x, target = (t[:4] if rank == 0 else t[4:] for t in batch())
    model = fastres.accelerate(nn.SyncBatchNorm.convert_sync_batchnorm(make()))
    # The whole batch's mean loss, as DDP averages over processes.
    loss = F.cross_entropy(model(x), target, reduction="sum") / 6
    loss.backward()
    found = results(model)
    for name, value in found.items():
        if name.startswith("grad of"):
            distributed.all_reduce(value)
    torch.save(found, folder / f"{rank}.pt")


def test_sync_batch_norm_is_the_whole_batchs(tmp_path):
    found = run(_train_with_sync_batch_norm, tmp_path)
    model = make()
    x, target = batch()
    F.cross_entropy(model(x), target).backward()
    expected = results(model)
    for ours in found:
        for name, value in expected.items():
            torch.testing.assert_close(ours[name], value, rtol=2e-3, atol=1e-5, msg=name)


def test_sync_batch_norm_alone_is_batch_norm():
    plain, synced = make(), nn.SyncBatchNorm.convert_sync_batchnorm(make())
    fused = fastres.accelerate(synced)
    x, _ = batch()
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-4)
    assert training_ops(copy.deepcopy(fused), x)["conv_stats"] == 11
    assert "affine_add_act" in str(training_ops(fused, x))


def _merge(rank: int, folder: Path) -> None:
    y = torch.randn(7, 5, generator=torch.Generator().manual_seed(2)).double() + 3
    part = (y[:5] if rank == 0 else y[5:]).requires_grad_()
    mean = part.mean(0)
    m2 = (part - mean).square().sum(0)
    merged, merged_m2, count = merge_statistics(mean, m2, len(part), distributed.group.WORLD)
    # Each process has a loss of its own; their sum is what is differentiated.
    ((rank + 1) * merged.square().sum() + (rank + 2) * merged_m2.square().sum()).backward()
    found = {"mean": merged.detach(), "m2": merged_m2.detach(), "count": torch.tensor(count)}
    torch.save({**found, "grad": part.grad}, folder / f"{rank}.pt")


def test_merged_statistics(tmp_path):
    first, second = run(_merge, tmp_path)
    y = torch.randn(7, 5, generator=torch.Generator().manual_seed(2)).double() + 3
    y.requires_grad_()
    mean = y.mean(0)
    m2 = (y - mean).square().sum(0)
    (3 * mean.square().sum() + 5 * m2.square().sum()).backward()
    for found in (first, second):
        torch.testing.assert_close(found["mean"], mean.detach())
        torch.testing.assert_close(found["m2"], m2.detach())
        assert found["count"] == 7
    torch.testing.assert_close(torch.cat([first["grad"], second["grad"]]), y.grad)
