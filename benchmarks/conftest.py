"""Options of ``pytest benchmarks``, and the fixture that times a call and says how good it is.

A run is compared with another (``--benchmark-compare``) in units of a yardstick: ``baseline.py``.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from .baseline import Record, rescale
from .layers import implementations
from .shapes import (
    DEFAULT_MODELS,
    MODELS,
    bottleneck_shapes,
    chain_shapes,
    conv_shapes,
    head_shapes,
    pool_shapes,
    training_shapes,
)
from .training_layers import TRAINING_IMPLEMENTATIONS

#: Of all op benchmarks: long enough for a median, short enough for forty layers.
MAX_TIME_S = 0.3


def pytest_addoption(parser):
    group = parser.getgroup("fastres benchmarks")
    group.addoption(
        "--models", nargs="+", choices=MODELS, default=DEFAULT_MODELS, help="(%(default)s)"
    )
    group.addoption("--batch", nargs="+", type=int, default=[1], help="batch sizes (%(default)s)")
    group.addoption("--threads", type=int, help="(default: torch's own choice)")


#: The runs to compare with, and what this run has measured.
_compared = pytest.StashKey[list[Record]]()
_measured = pytest.StashKey[list[Record]]()


def pytest_configure(config):
    config.stash.setdefault(_compared, [])
    config.stash.setdefault(_measured, [])


@pytest.hookimpl(tryfirst=True)
def pytest_benchmark_compare_machine_info(config, machine_info, compared_benchmark):
    """Keeps the records of a run to compare with, which pytest-benchmark goes on using."""
    config.stash.setdefault(_compared, []).extend(compared_benchmark["benchmarks"])
    # Or else pytest-benchmark would warn that the machines differ, which is no matter here.
    compared_benchmark["machine_info"] = machine_info


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    """Before pytest-benchmark compares: the other runs' times become this machine's."""
    compared, measured = session.config.stash[_compared], session.config.stash[_measured]
    names = {record["fullname"] for record in measured}
    unknown = names.intersection(rescale(compared, measured))
    if unknown:
        warnings.warn(f"compared as absolute times: {', '.join(sorted(unknown))}", stacklevel=1)
    return (yield)


def pytest_generate_tests(metafunc):
    options = metafunc.config.option
    for name, shapes_of in (
        ("conv_shape", conv_shapes),
        ("bottleneck_shape", bottleneck_shapes),
        ("chain_shape", chain_shapes),
        ("pool_shape", pool_shapes),
        ("head_shape", head_shapes),
    ):
        if name in metafunc.fixturenames:
            shapes = shapes_of(*options.models)
            cases = [(shape, name) for shape in shapes for name in implementations(shape)]
            metafunc.parametrize((name, "implementation"), cases, ids=str)
    if "training_shape" in metafunc.fixturenames:
        shapes = training_shapes(*options.models)
        cases = [(shape, name) for shape in shapes for name in TRAINING_IMPLEMENTATIONS]
        metafunc.parametrize(("training_shape", "training_implementation"), cases, ids=str)
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


class Machine(NamedTuple):
    """What the machine can do on torch's threads, measured in this run; None where unknown."""

    fma_peak_gflops: float | None
    copy_bandwidth_gbs: float | None


@pytest.fixture(scope="session")
def machine(_threads) -> Machine:
    try:
        from fastres._diagnostics import copy_bandwidth_gbs, fma_peak_gflops
    except ImportError as error:
        warnings.warn(
            f"no percentages: fastres was built without its diagnostics ({error})", stacklevel=1
        )
        return Machine(None, None)
    threads = torch.get_num_threads()
    return Machine(fma_peak_gflops(threads), copy_bandwidth_gbs(threads))


@pytest.fixture
def time_it(request, benchmark, machine) -> Callable[..., None]:
    """Times a call; records GFLOP/s and GB/s, and the percentages of the machine's."""

    def run(
        call: Callable[[], Any], group: str, *, flops: int | None = None, moved: int | None = None
    ) -> None:
        benchmark.group = group
        call()
        benchmark(call)
        if benchmark.stats is None:  # --benchmark-disable
            return
        seconds = benchmark.stats.stats.median
        info = benchmark.extra_info
        info["threads"] = torch.get_num_threads()
        if machine.fma_peak_gflops is not None:
            info["fma_peak_gflops"] = round(machine.fma_peak_gflops, 1)  # a yardstick, too
        if flops is not None:
            info["gflops"] = round(flops / seconds / 1e9, 2)
            if machine.fma_peak_gflops is not None:
                info["percent_of_peak"] = _percent(flops / seconds / 1e9, machine.fma_peak_gflops)
        if moved is not None:
            info["gbytes_per_s"] = round(moved / seconds / 1e9, 2)
            if machine.copy_bandwidth_gbs is not None:
                info["copy_bandwidth_gbs"] = round(machine.copy_bandwidth_gbs, 1)
                info["percent_of_copy"] = _percent(
                    moved / seconds / 1e9, machine.copy_bandwidth_gbs
                )
        request.config.stash[_measured].append(
            {
                "fullname": benchmark.fullname,
                "group": group,
                "params": benchmark.params,
                "extra_info": info,
                "stats": {"min": benchmark.stats.stats.min},
            }
        )

    return run


def _percent(value: float, peak: float) -> float:
    return round(100 * value / peak, 1)
