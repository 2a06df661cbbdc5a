"""Statistics over several processes, as ``nn.SyncBatchNorm`` takes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def merge_statistics(
    mean: Tensor, m2: Tensor, count: int, group: Any
) -> tuple[Tensor, Tensor, int]:
    """Merges the statistics of all processes.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979). Gradients go through: each process gets what its statistics are to the sum
    of all losses, as with ``nn.SyncBatchNorm``.

    Args:
        mean: [K], of the values of this process.
        m2: [K], the sum of their squared deviations from it.
        count: how many values that were, per channel; may be 0.
        group: the processes, all of which have to call this.

    Returns:
        mean, m2 and count of the values of all processes.
    """
    merged_mean, merged_m2, total = _Merge.apply(mean, m2, count, group)
    return merged_mean, merged_m2, int(total)


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, m2: Tensor, count: int, group: Any
    ) -> tuple[Tensor, Tensor, float]:
        mine = torch.cat([mean, m2, mean.new_full((1,), count)]).double()
        everybodys = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(everybodys, mine, group)
        channels = len(mean)
        means, m2s, counts = torch.stack(everybodys).split([channels, channels, 1], dim=1)
        total = counts.sum().clamp(min=1)
        merged = (means * counts).sum(0) / total
        merged_m2 = (m2s + counts * (means - merged).square()).sum(0)
        ctx.group, ctx.count, ctx.total = group, count, float(total)
        ctx.deviation = mean - merged.to(mean.dtype)
        return merged.to(mean.dtype), merged_m2.to(m2.dtype), float(counts.sum())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_mean: Tensor, grad_m2: Tensor, _: None) -> tuple[Any, ...]:
        both = torch.cat([grad_mean, grad_m2])
        dist.all_reduce(both, group=ctx.group)
        grad_mean, grad_m2 = both.chunk(2)
        # m2 has no gradient through the merged mean, about which its terms are least.
        share = ctx.count / ctx.total
        return share * grad_mean + 2 * ctx.count * ctx.deviation * grad_m2, grad_m2, None, None
