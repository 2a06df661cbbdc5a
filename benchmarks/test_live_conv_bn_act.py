"""live_conv_bn_act over every convolution of the networks, beside eager."""

import pytest

from .conftest import MAX_TIME_S
from .layers import conv_layer

pytestmark = pytest.mark.benchmark(max_time=MAX_TIME_S, min_rounds=5)


def test_live_conv_bn_act(time_it, conv_shape, batch, implementation):
    layer = conv_layer(conv_shape, batch, live=True)
    layer.validate()
    time_it(
        layer.call(implementation),
        f"live_conv_bn_act {conv_shape} batch {batch}",
        flops=conv_shape.flops(batch),
        moved=conv_shape.bytes(batch),
    )
