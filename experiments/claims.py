"""Verdicts on claims, from measured samples, and Welch's tests beside them."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from scipy import stats

HOLDS = "holds"
FAILS = "does not hold"
OPEN = "not decided"
Verdict = Literal["holds", "does not hold", "not decided"]

MOST_SEEDS = 1000
"""The largest number of seeds that `Comparison.seeds` names."""
_POWER = 0.8


@dataclasses.dataclass(frozen=True)
class Sample:
    """The same quantity measured with several seeds.

    Attributes:
        mean: mean over the seeds; NaN if there are none.
        std: sample standard deviation, with `count - 1`; NaN for fewer than two seeds.
        count: number of seeds.
    """

    mean: float
    std: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Sample":
        """The sample of the given measurements."""
        values = [float(value) for value in values]
        if not values:
            return cls(math.nan, math.nan, 0)
        std = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), std, len(values))

    def __str__(self) -> str:
        spread = "" if math.isnan(self.std) else f" ± {self.std:.2f}"
        return f"{self.mean:.2f}{spread}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The difference of two means, with Welch's t-test (unequal variances).

    Attributes:
        label: what is compared, where a claim has several comparisons.
        difference: of the means.
        interval: its 95 % confidence interval; None unless the samples vary.
        p: two-sided p-value of equal means; None unless the samples vary.
        seeds: the number of seeds per group with which the test would find this difference, at these standard
            deviations, with a power of 80 % at a level of 5 %; None for a difference of 0, or for more than
            `MOST_SEEDS`; 0 if finding a difference does not decide the claim.
    """

    label: str
    difference: float
    interval: tuple[float, float] | None = None
    p: float | None = None
    seeds: int | None = None


class Judgment(NamedTuple):
    """A verdict, and the comparisons that it rests on."""

    verdict: Verdict
    comparisons: tuple[Comparison, ...] = ()


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim, what the paper measured about it, with its table or figure, and what was measured here."""

    statement: str
    paper: str
    ours: str
    verdict: Verdict
    comparisons: Sequence[Comparison] = ()

    @property
    def p(self) -> float | None:
        """The largest p-value of its comparisons: a claim holds only if all of its parts do."""
        values = [comparison.p for comparison in self.comparisons if comparison.p is not None]
        return max(values) if values and len(values) == len(self.comparisons) else None


def spread(a: Sample, b: Sample) -> float:
    """The standard deviation of the difference of two runs; NaN unless both samples have two seeds."""
    return math.hypot(a.std, b.std)


def _verdict(holds: bool, fails: bool) -> Verdict:
    return HOLDS if holds else FAILS if fails else OPEN


def welch(a: Sample, b: Sample, label: str = "") -> Comparison:
    """Compares two means; a sample with a standard deviation of 0 counts as an exact value."""
    difference = a.mean - b.mean
    parts = [(sample.std**2, sample.count) for sample in (a, b) if sample.std != 0]
    if not parts or any(math.isnan(variance) for variance, _ in parts):
        return Comparison(label, difference)
    error, freedom = _standard_error(parts)
    half = float(stats.t.ppf(0.975, freedom)) * error
    p = 2 * float(stats.t.sf(abs(difference) / error, freedom))
    needed = _needed_seeds(difference, [variance for variance, _ in parts])
    return Comparison(label, difference, (difference - half, difference + half), p, needed)


def _standard_error(parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """The standard error of a difference and its degrees of freedom, from variances and counts."""
    squares = [variance / count for variance, count in parts]
    total = sum(squares)
    freedom = total**2 / sum(
        square**2 / (count - 1) for square, (_, count) in zip(squares, parts, strict=True)
    )
    return math.sqrt(total), freedom


def _needed_seeds(difference: float, variances: Sequence[float]) -> int | None:
    if difference == 0:
        return None

    def power(count: int) -> float:
        error, freedom = _standard_error([(variance, count) for variance in variances])
        return float(stats.nct.sf(stats.t.ppf(0.975, freedom), freedom, abs(difference) / error))

    low, high = 2, MOST_SEEDS
    if power(high) < _POWER:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= _POWER else (middle + 1, high)
    return low


def holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, which hold for all tests together."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted


def above(a: Sample, b: Sample, label: str = "") -> Judgment:
    """Whether `a` is above `b` by more than the spread.

    `FAILS` if `a` is below `b` by at least the spread; `OPEN` in between, and for single seeds, which have no
    spread.
    """
    difference, width = a.mean - b.mean, spread(a, b)
    return Judgment(_verdict(difference > width, difference <= -width), (welch(a, b, label),))


def not_above(a: Sample, b: Sample) -> Judgment:
    """Whether `a` is not above `b` by more than the spread; `OPEN` for single seeds, which have none."""
    difference, width = a.mean - b.mean, spread(a, b)
    return Judgment(_verdict(difference <= width, difference > width), (welch(a, b),))


def similar(a: Sample, b: Sample, tolerance: float) -> Judgment:
    """Whether the means differ by no more than the tolerance.

    `HOLDS` if the difference plus the spread is within the tolerance; `FAILS` if the difference minus the
    spread exceeds it; else `OPEN`.
    """
    difference, width = abs(a.mean - b.mean), spread(a, b)
    verdict = _verdict(difference + width <= tolerance, difference - width > tolerance)
    return Judgment(verdict, (dataclasses.replace(welch(a, b), seeds=0),))


def all_of(judgments: Iterable[Judgment]) -> Judgment:
    """The weakest of several verdicts, with all comparisons; `OPEN` if there are none."""
    judgments = list(judgments)
    verdicts = {judgment.verdict for judgment in judgments}
    comparisons = tuple(each for judgment in judgments for each in judgment.comparisons)
    return Judgment(_verdict(verdicts == {HOLDS}, FAILS in verdicts), comparisons)
