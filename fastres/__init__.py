"""Faster ResNet and ResNeXt for PyTorch: fused convolution, BatchNorm and activation."""

from . import convert, forms, models, nn, ops
from ._library import available_backends, get_backend, set_backend, show_config
from ._numerics import get_numerics, set_numerics
from ._version import __version__
from .accelerate import accelerate, restore
from .frozen import freeze
from .report.explain import explain
from .standard import unpack

__all__ = [
    "__version__",
    "accelerate",
    "available_backends",
    "convert",
    "explain",
    "forms",
    "freeze",
    "get_backend",
    "get_numerics",
    "models",
    "nn",
    "ops",
    "restore",
    "set_backend",
    "set_numerics",
    "show_config",
    "unpack",
]
