"""Verdicts on claims, from measured samples."""

import dataclasses
import math
import statistics
from collections.abc import Iterable
from typing import Literal

HOLDS = "holds"
FAILS = "does not hold"
OPEN = "not decided"
Verdict = Literal["holds", "does not hold", "not decided"]


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
class Claim:
    """A claim, what the paper measured about it, with its table or figure, and what was measured here."""

    statement: str
    paper: str
    ours: str
    verdict: Verdict


def spread(a: Sample, b: Sample) -> float:
    """The standard deviation of the difference of two runs; NaN unless both samples have two seeds."""
    return math.hypot(a.std, b.std)


def _verdict(holds: bool, fails: bool) -> Verdict:
    return HOLDS if holds else FAILS if fails else OPEN


def above(a: Sample, b: Sample) -> Verdict:
    """Whether `a` is above `b` by more than the spread.

    `FAILS` if `a` is below `b` by at least the spread; `OPEN` in between, and for single seeds, which have no
    spread.
    """
    difference, width = a.mean - b.mean, spread(a, b)
    return _verdict(difference > width, difference <= -width)


def not_above(a: Sample, b: Sample) -> Verdict:
    """Whether `a` is not above `b` by more than the spread; `OPEN` for single seeds, which have none."""
    difference, width = a.mean - b.mean, spread(a, b)
    return _verdict(difference <= width, difference > width)


def similar(a: Sample, b: Sample, tolerance: float) -> Verdict:
    """Whether the means differ by no more than the tolerance.

    `HOLDS` if the difference plus the spread is within the tolerance; `FAILS` if the difference minus the
    spread exceeds it; else `OPEN`.
    """
    difference, width = abs(a.mean - b.mean), spread(a, b)
    return _verdict(difference + width <= tolerance, difference - width > tolerance)


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """The weakest of several verdicts; `OPEN` if there are none."""
    verdicts = set(verdicts)
    return _verdict(verdicts == {HOLDS}, FAILS in verdicts)
