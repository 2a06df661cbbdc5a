"""Errors and times."""

import math

import pytest
import torch

from fastres import _measure
from fastres._table import format_markdown, format_table


def test_relative_error_is_over_all_tensors():
    exact = {"a": torch.tensor([3.0, 0.0]), "b": [torch.tensor([4.0]), "no tensor", 7]}
    output = {"a": torch.tensor([3.0, 0.5]), "b": [torch.tensor([4.0]), "no tensor", 7]}
    assert _measure.relative_error(output, exact) == pytest.approx(0.1)
    assert _measure.relative_error(exact, exact) == 0


@pytest.mark.parametrize(
    ("output", "exact"),
    [
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), [torch.ones(2), torch.ones(2)]),
        (torch.tensor([1.0, math.nan]), torch.ones(2)),
        (torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.inf])),
        (torch.tensor([1.0, -math.inf]), torch.tensor([1.0, math.inf])),
        (torch.ones(2), torch.zeros(2)),
    ],
    ids=["shape", "count", "not finite", "not a number", "other infinity", "zero"],
)
def test_what_cannot_be_compared_is_infinitely_wrong(output, exact):
    assert _measure.relative_error(output, exact) == math.inf


def test_the_same_nan_is_no_error():
    tensor = torch.tensor([1.0, math.nan, math.inf])
    assert _measure.relative_error(tensor, tensor.double()) == 0
    assert _measure.relative_error(torch.zeros(2), torch.zeros(2)) == 0


def test_an_error_beside_an_infinity_counts():
    exact = torch.tensor([3.0, 4.0, math.inf, math.nan])
    output = torch.tensor([3.0, 4.5, math.inf, math.nan])
    assert _measure.relative_error(output, exact) == pytest.approx(0.1)


def test_max_abs_difference_takes_detections():
    empty = {"boxes": torch.empty(0, 4), "scores": torch.empty(0)}
    one = {"boxes": torch.zeros(1, 4), "scores": torch.ones(1)}
    other = {"boxes": torch.full((1, 4), 0.25), "scores": torch.ones(1)}
    assert _measure.max_abs_difference(empty, empty) == 0
    assert _measure.max_abs_difference(other, one) == 0.25
    assert _measure.max_abs_difference(one, empty) == math.inf
    assert _measure.relative_error(empty, empty) == 0


def test_the_limit_is_the_contracts():
    assert _measure.error_limit(1e-3) == 2e-3
    assert _measure.error_limit(1e-3, "winograd") == 4e-3
    assert _measure.error_limit(0) == 2 * torch.finfo(torch.float32).eps


def test_contestants_take_turns_and_warm_up():
    calls = []
    contestants = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    timings = list(_measure.time_in_turn(contestants, rounds=2))
    assert calls == ["a", "a", "b", "b"] * 2
    assert [name for name, _ in timings] == ["a", "b"] * 2
    assert all(seconds >= 0 for _, seconds in timings)


def test_medians():
    samples = iter([("a", 1.0), ("b", 2.0), ("a", 9.0), ("a", 3.0)])
    assert _measure.medians(samples) == {"a": 3.0, "b": 2.0}


def test_tables_align():
    assert format_table(["name", "ms"], [["a", "1.0"], ["longer", "10.0"]]) == (
        "name      ms\n------  ----\na        1.0\nlonger  10.0"
    )
    assert format_markdown(["name", "ms"], [["a", "1.0"]]) == (
        "| name | ms |\n| --- | ---: |\n| a | 1.0 |"
    )
