"""``pack_conv_weight``: a convolution's weight in the layout that kernels read."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library, reference
from ..schema import checks
from ..schema.packed_weight import PackedHeader
from .arguments import (
    FLOAT32,
    FLOAT64,
    check_tensor,
)

_OPS = torch.ops.fastres


def pack_conv_weight(
    weight: Tensor, scale: Tensor | None = None, groups: int = 1, algorithm: str = "direct"
) -> Tensor:
    """Packs a convolution's weight, times a scale, in the layout that the kernels read.

    Args:
        weight: [K, C/groups, R, S], float32, bfloat16, float16 or float64.
        scale: [K], float32 (float64 for a float64 weight): BatchNorm's gamma / sqrt(var + eps).
        groups: the convolution's groups; divides K.
        algorithm: "direct", or "winograd" for a dense 3x3 that will be used with stride and
            dilation 1: Winograd's F(2x2, 3x3) (Lavin and Gray, arXiv:1509.09308), 2.25 times fewer
            multiplications; or "bfloat16", for bfloat16 inputs and multiples of 32 channels in each
            group: the weight, times the scale, is rounded to bfloat16, in half the bytes. AMX
            multiplies it as it is packed, other kernels widen it at each call.

    Returns:
        1-D uint8 tensor, a constant for ``conv_bn_act`` and ``grouped_bottleneck``. But for
        "bfloat16" it holds float32 whatever the weight's dtype (float64 for float64); the same
        bytes serve every instruction set. Of cuDNN or the CUDA kernels it also holds bfloat16 and
        float16 copies, and serves those two alone.

    Raises:
        ValueError: shapes that do not fit, or a weight or scale that would need a gradient.
        TypeError: a dtype other than these.
    """
    check_tensor("pack_conv_weight", "weight", weight, checks.FLOAT_DTYPES, None)
    double = weight.dtype == torch.float64
    if scale is not None:
        dtypes = FLOAT64 if double else FLOAT32
        check_tensor("pack_conv_weight", "scale", scale, dtypes, weight.device)
    if torch.is_grad_enabled():
        for name, tensor in (("weight", weight), ("scale", scale)):
            if tensor is not None and tensor.requires_grad:
                raise ValueError(
                    f"pack_conv_weight: {name} requires grad, but packed weights are constants; "
                    f"pass {name}.detach()"
                )
    if double:
        return reference.pack_conv_weight(weight, scale, groups, algorithm)
    return _OPS.pack_conv_weight(weight, scale, groups, algorithm)


@torch.library.register_fake("fastres::pack_conv_weight")
def _pack_conv_weight_fake(
    weight: Tensor, scale: Tensor | None, groups: int, algorithm: str = "direct"
) -> Tensor:
    checks.pack_conv_weight_check(weight, scale, groups, algorithm)
    k, cg, r, s = weight.shape
    layout = _library.packed_layout(weight.device.type, (k, cg, r, s), groups, algorithm)
    header = PackedHeader(layout, reference.compute_dtype(weight), k, cg, r, s, groups)
    return weight.new_empty(header.total_bytes(), dtype=torch.uint8)
