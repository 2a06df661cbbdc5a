"""live_bottleneck: packs the weights, which are little beside the block, and runs it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import reference
from .coverage import otherwise
from .grouped_bottleneck import grouped_bottleneck
from .pack_conv_weight import pack_conv_weight


@otherwise(reference.live_bottleneck)
def live_bottleneck(x: Tensor, *arguments: Any) -> Tensor:
    """``grouped_bottleneck`` of weights times scales, see ``reference.live_bottleneck``."""
    return grouped_bottleneck(*reference.packed_bottleneck(pack_conv_weight, x, *arguments))
