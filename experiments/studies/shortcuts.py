"""Shortcut options A, B and C: section 3.3 and table 3."""

import itertools
from collections.abc import Mapping, Sequence

from experiments import figures
from experiments.claims import Claim, Sample, above, all_of
from experiments.experiment import Experiment, Groups, diverged, per_seed
from experiments.page import Part, Picture, Table
from experiments.paper_results import TABLE_2, TABLE_3
from experiments.runs import Run, ladder_run
from experiments.settings import Setting

PLAIN = "plain"
OPTIONS = {
    PLAIN: "no shortcuts",
    "A": "zero-padding where the width grows",
    "B": "projections where the width grows",
    "C": "projections everywhere",
}
_LABELS = {option: option if option == PLAIN else f"option {option}" for option in OPTIONS}


def report(setting: Setting, runs: Groups) -> tuple[list[Claim], list[Part]]:
    """The errors of each option."""
    train, test = (
        {option: [run.error(split) for run in found] for option, found in runs.items()}
        for split in ("train", "val")
    )
    paper = {PLAIN: TABLE_2["plain", 34], **TABLE_3}
    rows = [
        [_LABELS[option], text, *(str(Sample.of(e[option])) for e in (train, test)), f"{paper[option]:.2f}"]
        for option, text in OPTIONS.items()
    ]
    header = [
        "network",
        "shortcuts",
        "training error, %",
        "test error, %",
        "paper: ImageNet, 34 layers, top-1, %",
    ]
    body: list[Part] = [
        Picture(
            "shortcuts",
            _picture(runs),
            "Test error over epochs for options A, B and C and the plain net",
            f"Test error of {setting.shortcut_depth}-layer networks over training, mean over seeds; the band "
            "is one standard deviation.",
        ),
        Table(
            header, rows, f"{setting.shortcut_depth} layers on {setting.dataset}: mean ± standard deviation."
        ),
        *diverged(runs, "count as guessing"),
    ]
    return claims(test), body


def claims(test: Mapping[str, Sequence[float]]) -> list[Claim]:
    """The claims of section 4.1 about table 3, judged by test errors in % of the same seeds."""
    samples = {option: Sample.of(values) for option, values in test.items()}
    options = [option for option in OPTIONS if option != PLAIN]
    by_seed = list(zip(*(test[option] for option in options), strict=True))
    gains = [plain - max(errors) for plain, errors in zip(test[PLAIN], by_seed, strict=True)]
    ranges = [max(errors) - min(errors) for errors in by_seed]
    # Both contain the worst option's error, so only their difference can be compared over the seeds.
    margin = Sample.of(gain - width for gain, width in zip(gains, ranges, strict=True))
    paper = ", ".join(f"{option} {error} %" for option, error in TABLE_3.items())
    ours = ", ".join(f"{option} {samples[option]} %" for option in options)
    return [
        Claim(
            "all three options are better than the plain net",
            f"{paper} against {TABLE_2['plain', 34]} % (Table 3)",
            f"{ours} against {samples[PLAIN]} %",
            *all_of(above(samples[PLAIN], samples[option], f"plain and {option}") for option in options),
        ),
        Claim(
            "projections are slightly better: B than A, and C than B",
            f"{paper} (Table 3)",
            ours,
            *all_of(above(samples[a], samples[b], f"{a} and {b}") for a, b in itertools.pairwise(options)),
        ),
        Claim(
            "the options differ less among themselves than the worst of them does from the plain net: "
            "projections are not essential",
            f"{TABLE_3['A'] - TABLE_3['C']:.2f} % among them, "
            f"{TABLE_2['plain', 34] - TABLE_3['A']:.2f} % to the plain net (Table 3)",
            f"{Sample.of(ranges)} % among them, {Sample.of(gains)} % to the plain net",
            *above(margin, Sample(0.0, 0.0, 1), "difference of each seed"),
        ),
    ]


def _run(setting: Setting, option: str, seed: int) -> Run:
    run = ladder_run(setting, "plain" if option == PLAIN else "resnet", setting.shortcut_depth, seed)
    if option in (PLAIN, "A"):
        return run
    recipe = run.recipe.replace(model_overrides={**run.recipe.model_overrides, "shortcut": option})
    return Run(f"{recipe.model}-shortcut{option}-seed{seed}", recipe, seed)


def _picture(runs: Groups) -> bytes:
    figure = figures.new()
    axes = figure.subplots()
    for (option, found), color in zip(runs.items(), ("0.5", "C0", "C1", "C2"), strict=True):
        figures.error_curves(axes, found, "val", "-", color, _LABELS[option])
    axes.set(xlabel="epoch", ylabel="test error, %", ylim=(0, None))
    axes.legend()
    return figures.png(figure)


EXPERIMENT = Experiment(
    name="shortcuts",
    title="Zero-padding or projections: shortcut options A, B and C",
    intro="He et al., 2015: a shortcut must bridge a change of width. Zeros for the new channels cost no "
    "parameter; projections cost some, and help little.",
    runs=lambda setting: per_seed(setting, OPTIONS, _run),
    report=report,
)
