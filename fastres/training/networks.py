"""Networks by name, for a number of classes."""

from torch import nn

from ..accelerate import restore
from ..cli_models import load_model

__all__ = ["build_network"]


def build_network(name: str, num_classes: int) -> nn.Module:
    """A plain PyTorch network with random weights; what is fused is the caller's business.

    Args:
        name: see ``MODEL_HELP``.
        num_classes: width of its classifier; ``file.py:function`` gets it as its argument.

    Raises:
        CliError: no such network, or building it failed.
    """
    model = load_model(name, "random", num_classes).model
    return restore(model).train()
