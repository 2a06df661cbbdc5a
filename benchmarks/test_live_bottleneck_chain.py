"""live_bottleneck_chain over every block of the networks that may follow itself, beside eager."""

import pytest

from .conftest import MAX_TIME_S
from .layers import CHAIN_LENGTH, chain_layer

pytestmark = pytest.mark.benchmark(max_time=MAX_TIME_S, min_rounds=5)


def test_live_bottleneck_chain(time_it, chain_shape, batch, implementation):
    layer = chain_layer(chain_shape, batch, live=True)
    layer.validate()
    time_it(
        layer.call(implementation),
        f"live_bottleneck_chain {chain_shape} x{CHAIN_LENGTH} batch {batch}",
        flops=CHAIN_LENGTH * chain_shape.flops(batch),
        moved=CHAIN_LENGTH * chain_shape.bytes(batch),
    )
