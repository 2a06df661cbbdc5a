"""Errors and times, measured the same way by every command and benchmark."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = [
    "ERROR_FACTORS",
    "error_limit",
    "max_abs_difference",
    "medians",
    "output_tensors",
    "relative_error",
    "time_in_turn",
]

#: The numerics contract: how many times eager PyTorch's own error an error may be, by the algorithm
#: that convolves.
ERROR_FACTORS = {"direct": 2.0, "winograd": 4.0}

_SLICE = 1 << 16  # elements


def output_tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors in what a model returned, in order."""
    leaves = tree_leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def relative_error(output: Any, reference: Any) -> float:
    """``‖output - reference‖ / ‖reference‖`` over all tensors of both, computed in float64.

    Infinite where shapes differ or a value is not finite and the other one another.
    """
    difference = norm = 0.0
    for tensor, expected in _slices(_pairs(output, reference)):
        if tensor.shape != expected.shape:
            return math.inf
        exact = expected.double()
        error = tensor.double() - exact
        norms = [float(torch.linalg.vector_norm(t)) for t in (error, exact)]
        if not all(map(math.isfinite, norms)):
            if not torch.equal(_not_finite(tensor), _not_finite(expected)):
                return math.inf
            finite = exact.isfinite()
            norms = [float(torch.linalg.vector_norm(t[finite])) for t in (error, exact)]
        difference += norms[0] ** 2
        norm += norms[1] ** 2
    if norm == 0:
        return 0.0 if difference == 0 else math.inf
    return (difference / norm) ** 0.5


def _slices(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Both tensors of each pair in parts that fit in a cache while they are compared."""
    for tensor, expected in pairs:
        both = tensor.detach(), expected.detach()
        if tensor.shape != expected.shape or tensor.numel() <= _SLICE:
            yield both
            continue
        rows = max(1, len(tensor) * _SLICE // tensor.numel())
        yield from zip(*(whole.split(rows) for whole in both), strict=True)


def _not_finite(tensor: Tensor) -> Tensor:
    """0 where ``tensor`` is finite, 1 where it is no number, infinities where it has them."""
    wide = tensor.double()
    return wide.masked_fill(wide.isfinite(), 0).nan_to_num(1.0, math.inf, -math.inf)


def max_abs_difference(output: Any, reference: Any) -> float:
    """The largest ``|output - reference|`` of all elements; infinite where shapes differ."""
    largest = 0.0
    for tensor, expected in _pairs(output, reference):
        if tensor.shape != expected.shape:
            return float("inf")
        if tensor.numel():
            largest = max(largest, float((tensor - expected).abs().max()))
    return largest


def _pairs(output: Any, reference: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The tensors of both in turn; a missing one is paired with an empty one of another rank."""
    ours, theirs = output_tensors(output), output_tensors(reference)
    return zip_longest(ours, theirs, fillvalue=torch.empty((0,) * 9))


def error_limit(eager_error: float, algorithm: str = "direct") -> float:
    """The largest float32 error that the contract allows where eager's own is ``eager_error``.

    Where eager is exact by luck, two units in the last place are allowed: folding a scale into the
    weights, and rounding the result.

    Args:
        eager_error: relative, as from :func:`relative_error`.
        algorithm: "direct", or "winograd" if that may have been used.
    """
    return max(ERROR_FACTORS[algorithm] * eager_error, 2 * torch.finfo(torch.float32).eps)


def time_in_turn(
    contestants: Mapping[str, Callable[[], Any]], rounds: int, pause_s: float = 0.0
) -> Iterator[tuple[str, float]]:
    """Times every contestant once a round, one after another, and yields (name, seconds).

    Each timed call follows an untimed one, which takes the cost of what the contestant before left
    behind: cold caches, and worker threads that still spin.

    Args:
        contestants: name to call.
        rounds: how often each is timed.
        pause_s: a sleep before each contestant's turn.
    """
    for _ in range(rounds):
        for name, call in contestants.items():
            time.sleep(pause_s)
            call()
            start = time.perf_counter()
            call()
            yield name, time.perf_counter() - start


def medians(timings: Iterator[tuple[str, float]]) -> dict[str, float]:
    """The median seconds of each name."""
    samples: dict[str, list[float]] = {}
    for name, seconds in timings:
        samples.setdefault(name, []).append(seconds)
    return {name: statistics.median(values) for name, values in samples.items()}
