"""The learning rate, the weight decay and the moving average of the weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.optim.swa_utils import AveragedModel

__all__ = ["moving_average", "parameter_groups", "warm_up_then_cosine"]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels, none for biases and norms.

    Source: "Bag of Tricks", section 3.1, https://arxiv.org/abs/1812.01187.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kernels = [parameter for parameter in parameters if parameter.dim() > 1]
    others = [parameter for parameter in parameters if parameter.dim() <= 1]
    return [
        {"params": kernels, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def warm_up_then_cosine(optimizer: Optimizer, warm_up: int, steps: int) -> LRScheduler:
    """From near zero to the optimizer's rate in ``warm_up`` steps, then a half cosine to zero.

    To be stepped after every one of the ``steps`` optimizer steps.
    """
    warm_up = min(warm_up, steps - 1)
    cosine = CosineAnnealingLR(optimizer, steps - warm_up)
    if warm_up == 0:
        return cosine
    linear = LinearLR(optimizer, start_factor=1 / (warm_up + 1), total_iters=warm_up)
    return SequentialLR(optimizer, [linear, cosine], milestones=[warm_up])


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model whose weights and statistics follow the model's at ``decay``.

    It follows faster at first, by ``min(decay, (1 + n) / (10 + n))`` after n updates, or else a
    short run would be evaluated on its random start. With ``decay`` 0 it is the model's copy.
    """
    return AveragedModel(model, multi_avg_fn=_follow(decay), use_buffers=True)


_Tensors = tuple[Tensor, ...] | list[Tensor]


def _follow(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    @torch.no_grad()
    def update(averages: _Tensors, values: _Tensors, updates: Tensor | int) -> None:
        weight = 1 - min(decay, (1 + int(updates)) / (10 + int(updates)))
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value.to(average.dtype), weight)
            else:
                average.copy_(value)

    return update
