"""max_pool over the networks' own, beside eager."""

import pytest

from .conftest import MAX_TIME_S
from .layers import pool_layer

pytestmark = pytest.mark.benchmark(max_time=MAX_TIME_S, min_rounds=5)


def test_max_pool(time_it, pool_shape, batch, implementation):
    layer = pool_layer(pool_shape, batch)
    layer.validate()
    time_it(
        layer.call(implementation),
        f"max_pool {pool_shape} batch {batch}",
        moved=pool_shape.bytes(batch),
    )
