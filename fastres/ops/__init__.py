"""The operators: for each its public function, fake kernel, autograd and autocast, side by side.

Kernels live in csrc/ (or in reference/ where there is no native library). The functions here
normalise their arguments, check what a kernel cannot name (dtypes, devices), and send float64,
which has no kernel, to the reference.

Gradients of inference go to x, shift and residual; a packed weight is a constant. They are computed
in plain PyTorch, in float32 for reduced dtypes, and can be differentiated again. Forward mode (jvp)
raises NotImplementedError, but in float64.
"""

from . import max_pool_places  # noqa: F401  (its fake kernels: training's graphs alone call it)
from .affine_add_act import affine_add_act
from .arguments import resolve_padding
from .avg_pool_linear import avg_pool_linear
from .bottleneck_chain import bottleneck_chain, join_packed
from .content_hash import content_hash
from .conv_bn_act import conv_bn_act
from .conv_max_pool import conv_max_pool
from .conv_stats import conv_stats
from .grouped_bottleneck import grouped_bottleneck
from .live_bottleneck import live_bottleneck
from .live_bottleneck_chain import live_bottleneck_chain
from .live_conv_bn_act import live_conv_bn_act
from .live_conv_max_pool import live_conv_max_pool
from .max_pool import max_pool
from .pack_conv_weight import pack_conv_weight

__all__ = [
    "affine_add_act",
    "avg_pool_linear",
    "bottleneck_chain",
    "content_hash",
    "conv_bn_act",
    "conv_max_pool",
    "conv_stats",
    "grouped_bottleneck",
    "join_packed",
    "live_bottleneck",
    "live_bottleneck_chain",
    "live_conv_bn_act",
    "live_conv_max_pool",
    "max_pool",
    "pack_conv_weight",
    "resolve_padding",
]
