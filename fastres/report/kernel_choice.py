"""What computes a model's convolutions in inference, for an input of one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .. import _library
from .._meta import run_on_meta

__all__ = ["kernel_choices"]


def kernel_choices(
    model: nn.Module, input_shape: Sequence[int], algorithms: Mapping[str, str]
) -> dict[str, str]:
    """The kernel of each convolution, by the path of its module.

    Args:
        model: not accelerated; used up. Its float16 convolutions are left out.
        input_shape: of its one input, batch first.
        algorithms: of the convolutions to tell of, by the path of their modules.

    Returns:
        "matrix tiles", "register tiles", "Winograd", "Winograd on matrix tiles", "pixel lanes",
        "grouped lanes" or "channel lanes" (docs/architecture.md has what they are); nothing where
        there are no native kernels.

    Raises:
        ValueError: the model does not run with such an input, or not on the meta device.
    """
    native = _library.diagnostics()
    if native is None:
        return {}
    on_meta = model.to("meta")
    on_meta.eval()
    choices: dict[str, str] = {}

    def noting(name: str) -> Any:
        def note(conv: nn.Conv2d, inputs: Any) -> None:
            left, right, top, bottom = conv._reversed_padding_repeated_twice
            choices[name] = native.kernel_choice(
                inputs[0].shape, conv.weight.shape, conv.stride, (top, bottom, left, right),
                conv.dilation, conv.groups, algorithms[name], True,
                conv.weight.dtype == torch.bfloat16,
            )  # fmt: skip

        return note

    for name, module in on_meta.named_modules():
        if not isinstance(module, nn.Conv2d) or name not in algorithms:
            continue
        if module.weight.dtype in (torch.float32, torch.bfloat16):
            module.register_forward_pre_hook(noting(name))
    run_on_meta(on_meta, input_shape, "explain")
    return choices
