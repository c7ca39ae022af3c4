"""The section with Welch's t-tests of all claims, with Holm's correction over a page."""

import math
from collections.abc import Sequence

from experiments.claims import MOST_SEEDS, OPEN, Claim, Comparison, holm
from experiments.page import Section, Table

_HEADER = (
    "claim",
    "compared",
    "difference of the means",
    "95 % interval",
    "p (Welch)",
    "largest p (Holm)",
    "verdict",
    "seeds for the test",
)
_TEXT = (
    "The verdicts compare differences with the spread of the seeds. This table shows, for the same "
    "differences, Welch's t-test (two-sided, unequal variances) and its 95 % confidence interval. A claim "
    "with several comparisons has the largest of their p-values; Holm's correction is over all claims of "
    "this page with p-values. Where a verdict is not decided, the last column estimates how many seeds per "
    "network the test needs to find the measured difference with a power of 80 % at a level of 5 %.",
    "The rule for verdicts is less strict than the test: a difference of one spread over three seeds has a "
    "p-value of .16 to .23.",
    "The test is always of equal means. For a claim that two values are similar, that one is not above the "
    "other, or that they differ by a given amount, its p-value neither confirms nor refutes the claim.",
    "A p-value is missing where no sample varies or there is one seed only. The test assumes normally "
    "distributed values, which a few seeds cannot confirm; the differences of gradients are of logarithms to "
    "base 10.",
)


def significance_section(sections: Sequence[Section]) -> Section | None:
    """The comparisons behind all claims with their tests; None if there are no comparisons."""
    claims = [claim for section in sections for claim in section.claims if claim.comparisons]
    if not claims:
        return None
    tested = [(claim, claim.p) for claim in claims if claim.p is not None]
    adjusted = holm([p for _, p in tested])
    by_claim = {id(claim): value for (claim, _), value in zip(tested, adjusted, strict=True)}
    rows = [
        _row(claim, comparison, by_claim.get(id(claim)))
        for claim in claims
        for comparison in claim.comparisons
    ]
    return Section("Tests and intervals", [], [*_TEXT, Table(_HEADER, rows)], "tests")


def _row(claim: Claim, comparison: Comparison, adjusted: float | None) -> list[str]:
    interval = comparison.interval
    return [
        claim.statement,
        comparison.label or "-",
        _number(comparison.difference),
        "-" if interval is None else f"{_number(interval[0])} to {_number(interval[1])}",
        _p(comparison.p),
        _p(adjusted),
        claim.verdict,
        _seeds(comparison) if claim.verdict == OPEN else "-",
    ]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.3g}"


def _p(value: float | None) -> str:
    return "-" if value is None else "< .001" if value < 0.001 else f"{value:.3f}".lstrip("0")


def _seeds(comparison: Comparison) -> str:
    if comparison.p is None or comparison.seeds == 0:
        return "-"
    return f"more than {MOST_SEEDS}" if comparison.seeds is None else str(comparison.seeds)
