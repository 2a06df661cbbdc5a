"""Whole networks: eager in channels_last, and accelerated."""

import pytest
import torch

from fastres import _measure
from fastres.cli.contenders import Contenders
from fastres.cli.images import load_photos, photo_batch
from fastres.cli.models import calibrate_batch_norm, load_model
from fastres.report.summary import summarize

from .shapes import IMAGE_SIZE

pytestmark = pytest.mark.benchmark(max_time=3, min_rounds=5)

_CALIBRATION_BATCH = 4


def test_model(time_it, model, batch, implementation):
    network = load_model(model, "random").model
    images = photo_batch(load_photos(None), max(batch, _CALIBRATION_BATCH))
    calibrate_batch_norm(network, images[:_CALIBRATION_BATCH])
    images = images[:batch].to(memory_format=torch.channels_last)
    contenders = Contenders.of(network)
    exact = contenders.float64(images.double())
    eager_error = _measure.relative_error(contenders.channels_last(images), exact)
    error = _measure.relative_error(contenders.accelerated(images), exact)
    assert error <= _measure.error_limit(eager_error, contenders.algorithm)
    contestants = {"fastres": contenders.accelerated, "eager": contenders.channels_last}
    contestant = contestants[implementation]
    with torch.inference_mode(False):
        flops = 2 * summarize(network, (batch, 3, IMAGE_SIZE, IMAGE_SIZE)).macs
    time_it(lambda: contestant(images), f"{model} batch {batch}", flops=flops)
