"""From measured samples to verdicts: nothing here knows what the paper found."""

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
        mean: over the seeds; NaN if there are none.
        std: the sample standard deviation, with `count - 1`; NaN for a single seed.
        count: seeds.
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
    """One sentence of the paper, and what was measured about it here.

    Attributes:
        statement: what is claimed.
        paper: what the paper measured, with its table or figure.
        ours: what was measured here.
        verdict: of the measurement.
    """

    statement: str
    paper: str
    ours: str
    verdict: Verdict


def spread(a: Sample, b: Sample) -> float:
    """The standard deviation of the difference of one run of `a` and one of `b`.

    NaN unless both have at least two seeds.
    """
    return math.hypot(a.std, b.std)


def above(a: Sample, b: Sample) -> Verdict:
    """Whether `a` is above `b` by more than the spread.

    `HOLDS` if it is; `FAILS` if it is equal, or below by the spread; `OPEN` between the two, and for single
    seeds, which have no spread.
    """
    difference, width = a.mean - b.mean, spread(a, b)
    if difference > width:
        return HOLDS
    return FAILS if difference <= -width else OPEN


def not_above(a: Sample, b: Sample) -> Verdict:
    """Whether `a` is not above `b` by more than the spread.

    `HOLDS` if it is below, or above by no more than the spread; `FAILS` beyond; `OPEN` for single seeds,
    which have no spread.
    """
    difference, width = a.mean - b.mean, spread(a, b)
    if difference <= width:
        return HOLDS
    return FAILS if difference > width else OPEN


def similar(a: Sample, b: Sample, tolerance: float) -> Verdict:
    """Whether the means differ by no more than the tolerance, whatever the spread makes of it.

    `HOLDS` if the difference and the spread together stay within it; `FAILS` if the difference is beyond it
    by more than the spread; else `OPEN`.
    """
    difference, width = abs(a.mean - b.mean), spread(a, b)
    if difference + width <= tolerance:
        return HOLDS
    return FAILS if difference - width > tolerance else OPEN


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """One verdict on several parts: the weakest, and `OPEN` if there are none."""
    verdicts = list(verdicts)
    for weakest in (FAILS, OPEN):
        if weakest in verdicts:
            return weakest
    return HOLDS if verdicts else OPEN
