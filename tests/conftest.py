"""The tolerance rule and the kernels that every operator test runs on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

# Threads that wait are to sleep: pytest-xdist has a process on every core, and those that spin keep
# others from what they wait for. OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Eager bfloat16 is a yardstick here. Where oneDNN uses AMX, convolutions of few channels with
# unequal strides come out wrong (torch 2.14.1: [1, 7, 6, 10] by [1, 7, 1, 4] with stride (1, 2)).
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

import torch
from conv_case import FEW
from torch import Tensor

from fastres import _library


def relative_error(out: Tensor, exact: Tensor) -> float:
    """||out - exact|| / ||exact||, over the elements that are finite in ``exact``."""
    finite = exact.isfinite()
    wide, exact = out.double()[finite], exact.double()[finite]
    norm = exact.norm().item()
    return (wide - exact).norm().item() / norm if norm else wide.norm().item()


@pytest.fixture(scope="session")
def assert_accurate() -> Callable[..., None]:
    """THE tolerance rule: an error against float64 of at most twice eager PyTorch's own."""

    def check(
        out: Tensor,
        eager: Tensor,
        exact: Tensor,
        *,
        factor: float = 2.0,
        magnitude: Callable[[], Tensor],
    ) -> None:
        """Raises unless ``out`` is about as accurate as ``eager``.

        Args:
            out: the result under test.
            eager: eager PyTorch's, on the same input and in the same dtype.
            exact: float64's.
            factor: how much larger than eager's the error may be.
            magnitude: returns the sums of the absolute values of the terms that make up each
                element of ``exact``; called for results of few elements.
        """
        assert out.shape == exact.shape
        assert out.dtype == eager.dtype
        # Not finite: in the same places, with the same values.
        finite = eager.isfinite()
        torch.testing.assert_close(
            out.masked_fill(finite, 0), eager.masked_fill(finite, 0), rtol=0, atol=0, equal_nan=True
        )
        # Eager is exact on some small problems (one tap; a sum in the very order of float64's),
        # where twice its error is nothing. Two ulps of the norm allow for the two roundings that
        # nobody can avoid: that of the scaled weight and that of the result.
        floor = 2 * torch.finfo(out.dtype).eps
        if exact.count_nonzero() < FEW:  # what ReLU has made zero has no error
            # Eager's error may be small by luck, or most sums may cancel to little. Then one
            # float32 ulp of the sums of absolute values (Higham, Accuracy and Stability of
            # Numerical Algorithms, 3.1, whose bound is n/2 ulps) is as good as it gets.
            norm = exact[exact.isfinite()].double().norm().item()
            terms = magnitude().double().norm().item()
            floor += torch.finfo(torch.float32).eps * terms / max(norm, 1e-300)
        error, allowed = relative_error(out, exact), relative_error(eager, exact)
        assert error <= max(factor * allowed, floor), (
            f"relative error {error:.3e}, eager's {allowed:.3e}, allowed {factor} times that "
            f"or {floor:.3e}"
        )

    return check


MISSING = "native library or its diagnostics"


def _kernel_names() -> list[str]:
    diagnostics = _library.diagnostics()
    if "cpu" in _library.available_backends() and diagnostics is not None:
        return ["reference", *diagnostics.supported_isas()]
    if os.environ.get("FASTRES_NATIVE") == "0":  # a pure-Python package, on purpose
        return ["reference"]
    return ["reference", MISSING]


def _use(name: str) -> Iterator[str]:
    if name == MISSING:
        pytest.fail(
            f"there is no {name}: build fastres, or set FASTRES_NATIVE=0 to test it without"
        )
    before, threads = _library.get_backend(), torch.get_num_threads()
    # One thread where a test does not say otherwise: small problems spend their time on waking the
    # others. The tests of threads compare any number of them with one, bit for bit.
    torch.set_num_threads(1)
    _library.set_backend("reference" if name == "reference" else "cpu")
    diagnostics = _library.diagnostics()
    if diagnostics is not None:
        diagnostics.force_isa("auto" if name == "reference" else name)
    yield name
    if diagnostics is not None:
        diagnostics.force_isa("auto")
    _library.set_backend(before)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=_kernel_names())
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test on the reference and on every instruction set of this machine."""
    yield from _use(request.param)


@pytest.fixture(scope="module", params=_kernel_names()[:2])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test on the reference and on one instruction set, where it matters no more."""
    yield from _use(request.param)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks, too, spend their time on waking threads; minutes of it on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """torch.set_num_threads, undone at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
