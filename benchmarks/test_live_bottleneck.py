"""live_bottleneck over every bottleneck block of the networks, beside eager."""

import pytest

from .conftest import MAX_TIME_S
from .layers import bottleneck_layer

pytestmark = pytest.mark.benchmark(max_time=MAX_TIME_S, min_rounds=5)


def test_live_bottleneck(time_it, bottleneck_shape, batch, implementation):
    layer = bottleneck_layer(bottleneck_shape, batch, live=True)
    layer.validate()
    time_it(
        layer.call(implementation),
        f"live_bottleneck {bottleneck_shape} batch {batch}",
        flops=bottleneck_shape.flops(batch),
        moved=bottleneck_shape.bytes(batch),
    )
