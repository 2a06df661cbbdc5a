"""Networks by name, for a number of classes."""

from torch import nn

from ..accelerate import restore
from ..cli.models import load_model
from ..models import CifarResNeXt

__all__ = ["DEFAULT_NETWORK", "build_network"]

#: ResNeXt-29 of the paper's CIFAR section, as narrow as handwritten digits allow: 132 MMACs at
#: 32x32, an epoch of seconds.
DEFAULT_NETWORK = "resnext29"
_NARROW = {"cardinality": 8, "depth": 29, "base_width": 8, "widen_factor": 1}


def build_network(name: str, num_classes: int) -> nn.Module:
    """A plain PyTorch network with random weights; what is fused is the caller's business.

    Args:
        name: see ``MODEL_HELP``; or ``DEFAULT_NETWORK``.
        num_classes: width of its classifier; ``file.py:function`` gets it as its argument.

    Raises:
        CliError: no such network, or building it failed.
    """
    if name == DEFAULT_NETWORK:
        return CifarResNeXt(**_NARROW, num_classes=num_classes)
    model = load_model(name, "random", num_classes).model
    return restore(model).train()
