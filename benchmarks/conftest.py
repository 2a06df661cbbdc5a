"""Options of ``pytest benchmarks``, and the fixture that times a call and says how good it is."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from .layers import implementations
from .shapes import DEFAULT_MODELS, MODELS, bottleneck_shapes, conv_shapes

#: Of all op benchmarks: long enough for a median, short enough for forty layers.
MAX_TIME_S = 0.3


def pytest_addoption(parser):
    group = parser.getgroup("fastres benchmarks")
    group.addoption(
        "--models", nargs="+", choices=MODELS, default=DEFAULT_MODELS, help="(%(default)s)"
    )
    group.addoption("--batch", nargs="+", type=int, default=[1], help="batch sizes (%(default)s)")
    group.addoption("--threads", type=int, help="(default: torch's own choice)")


def pytest_generate_tests(metafunc):
    options = metafunc.config.option
    for name, shapes_of in (("conv_shape", conv_shapes), ("bottleneck_shape", bottleneck_shapes)):
        if name in metafunc.fixturenames:
            shapes = shapes_of(*options.models)
            cases = [(shape, name) for shape in shapes for name in implementations(shape)]
            metafunc.parametrize((name, "implementation"), cases, ids=str)
    if "model" in metafunc.fixturenames:
        cases = [(model, name) for model in options.models for name in ("eager", "fastres")]
        metafunc.parametrize(("model", "implementation"), cases)
    metafunc.parametrize("batch", options.batch)


@pytest.fixture(scope="session", autouse=True)
def _threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.option.threads or before)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def peak_gflops(_threads) -> float | None:
    """The machine's FMA peak in this run, in GFLOP/s on torch's threads."""
    try:
        from fastres._diagnostics import fma_peak_gflops
    except ImportError as error:
        warnings.warn(
            f"no percent_of_peak: fastres was built without its diagnostics ({error})", stacklevel=1
        )
        return None
    return fma_peak_gflops(torch.get_num_threads())


@pytest.fixture
def time_it(benchmark, peak_gflops) -> Callable[..., None]:
    """Times a call; puts GFLOP/s and the percent of the FMA peak into the benchmark's record."""

    def run(call: Callable[[], Any], flops: int, group: str) -> None:
        benchmark.group = group
        call()
        benchmark(call)
        if benchmark.stats is None:  # --benchmark-disable
            return
        gflops = flops / benchmark.stats.stats.median / 1e9
        benchmark.extra_info["gflops"] = round(gflops, 2)
        benchmark.extra_info["threads"] = torch.get_num_threads()
        if peak_gflops:
            benchmark.extra_info["fma_peak_gflops"] = round(peak_gflops, 1)
            benchmark.extra_info["percent_of_peak"] = round(100 * gflops / peak_gflops, 1)

    return run
