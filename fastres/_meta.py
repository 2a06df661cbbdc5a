"""Runs a model without computing anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def run_on_meta(model: nn.Module, input_shape: Sequence[int], caller: str) -> None:
    """Calls a model that is on the meta device, for what its hooks note.

    Args:
        model: in eval mode.
        input_shape: of its one input, batch first.
        caller: what the message names.

    Raises:
        ValueError: the model does not run with such an input, or not on the meta device.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    try:
        with torch.no_grad():
            model(torch.empty(*input_shape, dtype=dtype, device="meta"))
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{caller}: input_shape must be one that the model runs with, got "
            f"{tuple(input_shape)}: {error}"
        ) from error
