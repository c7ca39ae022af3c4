"""Verdicts from means and spreads, in both directions."""

import math

import pytest

from experiments.claims import FAILS, HOLDS, OPEN, Sample, above, all_of, not_above, similar, spread


def test_a_sample_is_mean_and_sample_deviation():
    sample = Sample.of([1, 2, 3])
    assert (sample.mean, sample.std, sample.count) == (2.0, 1.0, 3)
    assert str(sample) == "2.00 ± 1.00"


def test_one_seed_has_no_spread():
    sample = Sample.of([4])
    assert math.isnan(sample.std)
    assert str(sample) == "4.00"
    assert math.isnan(Sample.of([]).mean)


def test_spread_is_of_the_difference():
    assert spread(Sample(9, 3, 3), Sample(5, 4, 3)) == 5


@pytest.mark.parametrize(
    ("a", "b", "is_above", "is_not_above"),
    [
        ([12, 13, 11], [3, 3.5, 2.5], HOLDS, FAILS),
        ([3, 3.5, 2.5], [12, 13, 11], FAILS, HOLDS),
        ([3.1, 2.1, 4.1], [3, 2, 4], OPEN, HOLDS),
        ([2.9, 1.9, 3.9], [3, 2, 4], OPEN, HOLDS),
        ([3, 2, 4], [3, 2, 4], OPEN, HOLDS),
        ([3, 3, 3], [3, 3, 3], FAILS, HOLDS),
        ([0.2, 0.2, 0.2], [0, 0, 0], HOLDS, FAILS),
        ([5], [3], OPEN, OPEN),
        ([3], [5], OPEN, OPEN),
        ([], [5, 5], OPEN, OPEN),
    ],
)
def test_verdicts(a, b, is_above, is_not_above):
    a, b = Sample.of(a), Sample.of(b)
    assert above(a, b) == is_above
    assert not_above(a, b) == is_not_above


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([5, 5.2, 5.1], [5.1, 5.3, 5], HOLDS),
        ([5, 5.2, 5.1], [9, 9.2, 9.1], FAILS),
        ([57, 85, 30], [33, 50, 17], OPEN),
        ([30, 60, 90], [61, 59, 60], OPEN),
        ([5], [5], OPEN),
    ],
)
def test_similar_needs_a_small_spread(a, b, verdict):
    assert similar(Sample.of(a), Sample.of(b), 1.0) == verdict
    assert similar(Sample.of(b), Sample.of(a), 1.0) == verdict


def test_the_weakest_part_decides():
    assert all_of([HOLDS, HOLDS]) == HOLDS
    assert all_of([HOLDS, OPEN]) == OPEN
    assert all_of([OPEN, FAILS, HOLDS]) == FAILS
    assert all_of([]) == OPEN
