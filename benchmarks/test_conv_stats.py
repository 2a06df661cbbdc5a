"""conv_stats over every convolution of the networks, forward and backward, beside eager."""

import pytest
import torch

from .conftest import MAX_TIME_S
from .training_layers import TrainingLayer

pytestmark = pytest.mark.benchmark(max_time=MAX_TIME_S, min_rounds=5)


@pytest.fixture(autouse=True)
def _inference():
    """Not here: these benchmarks need gradients."""


def test_conv_stats(time_it, training_shape, batch, training_implementation):
    layer = TrainingLayer(training_shape, batch)
    with torch.enable_grad():
        layer.validate()
        time_it(
            layer.step(training_implementation).forward,
            f"conv_stats forward {training_shape} batch {batch}",
            flops=training_shape.flops(batch),
            moved=training_shape.bytes(batch),
        )


def test_conv_stats_backward(time_it, training_shape, batch, training_implementation):
    layer = TrainingLayer(training_shape, batch)
    with torch.enable_grad():
        time_it(
            layer.step(training_implementation).backward,
            f"conv_stats backward {training_shape} batch {batch}",
            flops=2 * training_shape.flops(batch),
            # x, y and the weight, and their gradients.
            moved=2 * training_shape.bytes(batch),
        )
