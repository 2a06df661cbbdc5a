"""Faster ResNet and ResNeXt for PyTorch: fused convolution, BatchNorm and activation."""

from . import models, nn, ops
from ._library import available_backends, get_backend, set_backend, show_config
from ._version import __version__

__all__ = [
    "__version__",
    "available_backends",
    "get_backend",
    "models",
    "nn",
    "ops",
    "set_backend",
    "show_config",
]
