"""BatchNorm between the training operators: from a convolution's statistics to an affine."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["ChannelAffine", "batch_norm_affine"]


class ChannelAffine(NamedTuple):
    """``(y - mean) * scale + bias``: what ``conv_stats`` and ``affine_add_act`` take, all [K]."""

    mean: Tensor
    scale: Tensor
    bias: Tensor


def batch_norm_affine(
    norm: _BatchNorm, y: Tensor, mean: Tensor, m2: Tensor, conv_bias: Tensor | None = None
) -> ChannelAffine:
    """What ``norm`` would do to a convolution's output, as an affine of each channel.

    Updates the running statistics as calling ``norm`` would: the unbiased variance, with
    ``momentum`` or, where that is None, as the average of all batches. Statistics of the batch are
    used in training mode and where ``norm`` tracks none, otherwise the running ones. Gradients go
    to ``mean``, ``m2`` and the parameters.

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
    if norm.training or (norm.running_mean is None and norm.running_var is None):
        count = y.numel() // max(1, y.shape[1])
        # What F.batch_norm says, with its rule: an empty batch is not refused.
        if norm.training and y.shape[0] * y.shape[2:].numel() == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {y.size()}"
            )
        if norm.training and norm.track_running_stats:
            _update(norm, mean, m2, count, conv_bias)
        centre, variance = mean, m2 / max(1, count)
    else:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        centre, variance = norm.running_mean.to(mean.dtype), norm.running_var.to(mean.dtype)
        if conv_bias is not None:
            centre = centre - conv_bias.to(mean.dtype)
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.to(mean.dtype)
    bias = torch.zeros_like(mean) if norm.bias is None else norm.bias.to(mean.dtype)
    return ChannelAffine(centre, scale, bias)


@torch.no_grad()
def _update(
    norm: _BatchNorm, mean: Tensor, m2: Tensor, count: int, conv_bias: Tensor | None
) -> None:
    """One batch more in the running statistics."""
    share = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if share is None:
            share = 1.0 / float(norm.num_batches_tracked)
    if norm.running_mean is None or norm.running_var is None or count == 0:
        return
    total = mean if conv_bias is None else mean + conv_bias.to(mean.dtype)
    share = 0.0 if share is None else share
    norm.running_mean.lerp_(total.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_((m2 / (count - 1)).to(norm.running_var.dtype), share)
