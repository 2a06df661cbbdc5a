"""avg_pool_linear, a network's head, beside eager's operators one after the other."""

import pytest

from .conftest import MAX_TIME_S
from .layers import HEAD_OUTPUTS, head_layer

pytestmark = pytest.mark.benchmark(max_time=MAX_TIME_S, min_rounds=5)


def test_avg_pool_linear(time_it, head_shape, batch, implementation):
    layer = head_layer(head_shape, batch)
    layer.validate()
    time_it(
        layer.call(implementation),
        f"avg_pool_linear {head_shape} batch {batch}",
        flops=head_shape.flops(batch, HEAD_OUTPUTS),
        moved=head_shape.bytes(batch, HEAD_OUTPUTS),
    )
