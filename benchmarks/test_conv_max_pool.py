"""conv_max_pool, a network's stem, beside eager's operators one after the other."""

import pytest

from .conftest import MAX_TIME_S
from .layers import stem_layer

pytestmark = pytest.mark.benchmark(max_time=MAX_TIME_S, min_rounds=5)


def test_conv_max_pool(time_it, pool_shape, batch, implementation):
    layer = stem_layer(pool_shape, batch)
    layer.validate()
    time_it(
        layer.call(implementation),
        f"conv_max_pool {pool_shape} batch {batch}",
        flops=pool_shape.stem_flops(batch),
        moved=pool_shape.stem_bytes(batch),
    )
