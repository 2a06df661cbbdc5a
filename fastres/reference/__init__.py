"""The operators in plain PyTorch: the oracle of every test and the fallback of every backend.

The functions take exactly the arguments of the schemas in csrc/ops.cpp.
"""

from .inference import (
    apply_act,
    avg_pool_linear,
    bottleneck_chain,
    channels_last,
    compute_dtype,
    content_hash,
    conv_bn_act,
    conv_max_pool,
    grouped_bottleneck,
    live_bottleneck,
    live_bottleneck_chain,
    live_conv_bn_act,
    live_conv_max_pool,
    max_pool,
    packed_bottleneck,
    unpacked_bottleneck,
    unpacked_conv_bn_act,
    with_usual_strides,
)
from .packing import join_packed, pack_conv_weight, unpack_conv_weight
from .training import (
    affine,
    affine_add_act,
    affine_add_act_backward,
    conv_stats,
    conv_stats_backward,
    conv_stats_backward_check,
    max_pool_places,
    max_pool_places_backward,
)

__all__ = [
    "affine",
    "affine_add_act",
    "affine_add_act_backward",
    "apply_act",
    "avg_pool_linear",
    "bottleneck_chain",
    "channels_last",
    "compute_dtype",
    "content_hash",
    "conv_bn_act",
    "conv_max_pool",
    "conv_stats",
    "conv_stats_backward",
    "conv_stats_backward_check",
    "grouped_bottleneck",
    "join_packed",
    "live_bottleneck",
    "live_bottleneck_chain",
    "live_conv_bn_act",
    "live_conv_max_pool",
    "max_pool",
    "max_pool_places",
    "max_pool_places_backward",
    "pack_conv_weight",
    "packed_bottleneck",
    "unpack_conv_weight",
    "unpacked_bottleneck",
    "unpacked_conv_bn_act",
    "with_usual_strides",
]
