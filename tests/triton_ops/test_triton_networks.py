"""accelerate and freeze on the Triton kernels: a whole network, in inference and in training."""

from __future__ import annotations

import pytest
from network_on_kernels import check_inference, check_training


def test_inference(assert_accurate):
    check_inference(assert_accurate)


@pytest.mark.parametrize("memory", ["keep", "save"])
def test_training(assert_accurate, memory):
    check_training(assert_accurate, memory=memory)
