"""Verdicts from means and spreads, in both directions."""

import math

import pytest
from scipy import stats

from experiments.claims import (
    FAILS,
    HOLDS,
    OPEN,
    Claim,
    Judgment,
    Sample,
    above,
    all_of,
    holm,
    not_above,
    similar,
    spread,
    welch,
)
from experiments.page import Section, Table
from experiments.significance import significance_section


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
    assert above(a, b).verdict == is_above
    assert not_above(a, b).verdict == is_not_above


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
    assert similar(Sample.of(a), Sample.of(b), 1.0).verdict == verdict
    assert similar(Sample.of(b), Sample.of(a), 1.0).verdict == verdict


def test_the_weakest_part_decides():
    def weakest(*verdicts):
        return all_of(map(Judgment, verdicts)).verdict

    assert weakest(HOLDS, HOLDS) == HOLDS
    assert weakest(HOLDS, OPEN) == OPEN
    assert weakest(OPEN, FAILS, HOLDS) == FAILS
    assert weakest() == OPEN


def test_welchs_test_is_scipys():
    first, second = [12.1, 13.4, 11.2], [9.0, 14.0, 8.5, 10.1]
    expected = stats.ttest_ind(first, second, equal_var=False)
    found = welch(Sample.of(first), Sample.of(second))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval()))
    exact = welch(Sample.of(first), Sample(10.0, 0.0, 1))
    assert exact.p == pytest.approx(stats.ttest_1samp(first, 10.0).pvalue)


@pytest.mark.parametrize("values", [[5.0], [5.0, 5.0, 5.0], []])
def test_no_test_without_variation(values):
    assert welch(Sample.of(values), Sample.of([3.0])).p is None


@pytest.mark.parametrize(("effect", "seeds"), [(0.5, 64), (0.8, 26), (1.0, 17)])
def test_seeds_for_a_power_of_80_percent(effect, seeds):
    """Table 2.4.1 of Cohen, "Statistical Power Analysis for the Behavioral Sciences", at 5 %, two-sided."""
    assert welch(Sample(effect, 1.0, 3), Sample(0.0, 1.0, 3)).seeds == seeds


def test_no_number_of_seeds_finds_no_difference():
    assert welch(Sample(1.0, 1.0, 3), Sample(1.0, 1.0, 3)).seeds is None
    assert welch(Sample(1.0001, 1.0, 3), Sample(1.0, 1.0, 3)).seeds is None


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_section_of_tests():
    low, high, near = Sample.of([1, 2, 3]), Sample.of([11, 12, 13]), Sample.of([2, 2.5, 1.9])
    parts = all_of([above(high, low, "first"), above(near, low, "second")])
    claims = [
        Claim("a", "paper", "ours", *above(high, low)),
        Claim("b", "paper", "ours", *parts),
        Claim("c", "paper", "ours", *above(Sample.of([1]), Sample.of([2]))),
        Claim("d", "paper", "ours", HOLDS),
        Claim("e", "paper", "ours", *similar(low, near, 1.0)),
    ]
    assert claims[1].p == max(each.p for each in parts.comparisons)
    section = significance_section([Section("one", claims[:2], []), Section("two", claims[2:], [])])
    assert section is not None
    (table,) = (part for part in section.body if isinstance(part, Table))
    assert [row[:2] for row in table.rows] == [
        ["a", "-"],
        ["b", "first"],
        ["b", "second"],
        ["c", "-"],
        ["e", "-"],
    ]
    first, _, second, single, alike = table.rows
    assert first[2:] == ["+10", "+7.73 to +12.3", "< .001", "< .001", HOLDS, "-"]
    adjusted = holm([claims[index].p for index in (0, 1, 4)])
    assert [second[5], alike[5]] == [f"{p:.3f}".lstrip("0") for p in adjusted[1:]]
    assert (second[6], second[7]) == (OPEN, str(parts.comparisons[1].seeds))
    assert alike[6:] == [OPEN, "-"]  # a difference that is found would not show similarity
    assert single[3:] == ["-", "-", "-", OPEN, "-"]
    assert significance_section([Section("two", claims[3:4], [])]) is None
