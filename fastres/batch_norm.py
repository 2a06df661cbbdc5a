"""BatchNorm between the training operators: from a convolution's statistics to an affine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .sync_batch_norm import merge_statistics

__all__ = ["BatchNormCall", "ChannelAffine", "batch_norm_affine"]


class ChannelAffine(NamedTuple):
    """``(y - mean) * scale + bias``: what ``conv_stats`` and ``affine_add_act`` take, all [K]."""

    mean: Tensor
    scale: Tensor
    bias: Tensor


class BatchNormCall(NamedTuple):
    """One call of ``F.batch_norm``: its arguments after the input.

    Running statistics are [K], as are weight and bias; each may be None.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    training: bool
    """Whether the statistics are the batch's, which then go into the running ones."""
    momentum: float
    """The share that the batch gets in the running statistics."""
    eps: float
    group: Any = None
    """The processes to take statistics over, of SyncBatchNorm; None for this one alone."""

    @classmethod
    def of(cls, norm: _BatchNorm) -> BatchNormCall:
        """What calling ``norm`` amounts to; counts the batch, as the call does."""
        share = 0.0 if norm.momentum is None else norm.momentum
        if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if norm.momentum is None:
                share = 1.0 / float(norm.num_batches_tracked)
        keeps = not norm.training or norm.track_running_stats
        return cls(
            norm.running_mean if keeps else None,
            norm.running_var if keeps else None,
            norm.weight,
            norm.bias,
            norm.training or (norm.running_mean is None and norm.running_var is None),
            share,
            norm.eps,
            _group_of(norm),
        )

    def affine(
        self, size: Sequence[int], mean: Tensor, m2: Tensor, conv_bias: Tensor | None = None
    ) -> ChannelAffine:
        """The affine, from what ``batch_norm_affine`` takes, and the size of y.

        Raises:
            ValueError: one value per channel, of which there is no variance; as PyTorch says it.
        """
        if self.training:
            centre, variance = self._batch_statistics(size, mean, m2, conv_bias)
        else:
            assert self.running_mean is not None
            assert self.running_var is not None
            # Copies of what is kept for backward: the next call may change it before that.
            centre = self.running_mean.to(mean.dtype, copy=True)
            variance = self.running_var.to(mean.dtype)
            if conv_bias is not None:
                centre = centre - conv_bias.to(mean.dtype)
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight.to(mean.dtype)
        bias = torch.zeros_like(mean)
        if self.bias is not None:
            bias = self.bias.to(mean.dtype, copy=True)
        return ChannelAffine(centre, scale, bias)

    def _batch_statistics(
        self, size: Sequence[int], mean: Tensor, m2: Tensor, conv_bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        count = size[0] * size[2] * size[3]
        if self.group is not None:
            mean, m2, count = merge_statistics(mean, m2, count, self.group)
        # What F.batch_norm says, with its rule: an empty batch is not refused.
        if count == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {size}"
            )
        if self.running_mean is not None and self.running_var is not None and count > 0:
            with torch.no_grad():
                total = mean if conv_bias is None else mean + conv_bias.to(mean.dtype)
                pairs = (self.running_mean, total), (self.running_var, m2 / (count - 1))
                for running, new in pairs:
                    running.lerp_(new.to(running.dtype), self.momentum)
        if conv_bias is not None:
            # Taken away with the mean: its gradient is 0, and not none, which DDP would wait for.
            mean = torch.add(mean, conv_bias.to(mean.dtype), alpha=0)
        return mean, m2 / max(1, count)


def batch_norm_affine(
    norm: _BatchNorm, y: Tensor, mean: Tensor, m2: Tensor, conv_bias: Tensor | None = None
) -> ChannelAffine:
    """What ``norm`` would do to a convolution's output, as an affine of each channel.

    Updates the running statistics as calling ``norm`` would: the unbiased variance, with
    ``momentum`` or, where that is None, as the average of all batches. Statistics of the batch are
    used in training mode and where ``norm`` tracks none, otherwise the running ones; those of
    ``nn.SyncBatchNorm`` are taken over its processes. Gradients go to ``mean``, ``m2`` and the
    parameters.

    Args:
        norm: a BatchNorm of K channels.
        y: [N, K, H, W], of ``conv_stats``; its shape is read alone.
        mean: [K], of ``conv_stats``.
        m2: [K], of ``conv_stats``.
        conv_bias: [K], of the convolution, which ``conv_stats`` leaves out: it moves the running
            mean and nothing else.

    Raises:
        ValueError: one value per channel, of which there is no variance; as PyTorch says it.
    """
    return BatchNormCall.of(norm).affine(y.size(), mean, m2, conv_bias)


def _group_of(norm: _BatchNorm) -> Any:
    """The processes that a SyncBatchNorm synchronises with; None where it does not, as it says."""
    if not isinstance(norm, nn.SyncBatchNorm) or not norm.training:
        return None
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    group = norm.process_group or distributed.group.WORLD
    return group if distributed.get_world_size(group) > 1 else None
