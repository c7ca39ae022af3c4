"""Shortcut options A, B and C: section 3.3 and table 3."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import command, figures
from experiments.claims import Claim, Sample, above, all_of
from experiments.page import Picture, Section, Table
from experiments.paper_results import TABLE_2, TABLE_3
from experiments.runs import Outcomes, Run, given_up, ladder_run
from experiments.settings import Setting

NAME = "shortcuts"
TITLE = "Zero-padding or projections: shortcut options A, B and C"

PLAIN = "plain"
OPTIONS = {
    PLAIN: "no shortcuts",
    "A": "zero-padding where the width grows",
    "B": "projections where the width grows",
    "C": "projections everywhere",
}


def plan(setting: Setting) -> list[Run]:
    """The plain net and the three options, at one depth."""
    return [_run(setting, option, seed) for seed in range(setting.seeds) for option in OPTIONS]


def report(setting: Setting, outcomes: Outcomes, folder: Path) -> Section:
    """The errors of each option."""
    del folder
    runs = {
        option: [outcomes[_run(setting, option, seed)] for seed in range(setting.seeds)] for option in OPTIONS
    }
    train, test = (
        {option: [run.error(split) for run in found] for option, found in runs.items()}
        for split in ("train", "val")
    )
    rows = [
        [
            option if option == PLAIN else f"option {option}",
            text,
            str(Sample.of(train[option])),
            str(Sample.of(test[option])),
            f"{TABLE_2['plain', 34] if option == PLAIN else TABLE_3[option]:.2f}",
        ]
        for option, text in OPTIONS.items()
    ]
    header = [
        "network",
        "shortcuts",
        "training error, %",
        "test error, %",
        "paper: ImageNet, 34 layers, top-1, %",
    ]
    body = [
        Picture(
            "shortcuts",
            _picture(setting, runs),
            "Test error over epochs for options A, B and C and the plain net",
            f"Test error of {setting.shortcut_depth}-layer networks over training, mean over seeds; the band "
            "is one standard deviation.",
        ),
        Table(
            header, rows, f"{setting.shortcut_depth} layers on {setting.dataset}: mean ± standard deviation."
        ),
        *given_up(run for found in runs.values() for run in found),
    ]
    return Section(TITLE, claims(test), body, NAME)


def claims(test: Mapping[str, Sequence[float]]) -> list[Claim]:
    """What section 4.1 says of table 3, judged by test errors in %.

    Args:
        test: by option and `PLAIN`, one a seed, in the same order of seeds.
    """
    samples = {option: Sample.of(values) for option, values in test.items()}
    options = [option for option in OPTIONS if option != PLAIN]
    by_seed = list(zip(*(test[option] for option in options), strict=True))
    gains = [plain - max(errors) for plain, errors in zip(test[PLAIN], by_seed, strict=True)]
    ranges = [max(errors) - min(errors) for errors in by_seed]
    paper = ", ".join(f"{option} {error} %" for option, error in TABLE_3.items())
    return [
        Claim(
            "all three options are better than the plain net",
            f"{paper} against {TABLE_2['plain', 34]} % (Table 3)",
            ", ".join(f"{option} {samples[option]} %" for option in options) + f" against {samples[PLAIN]} %",
            all_of(above(samples[PLAIN], samples[option]) for option in options),
        ),
        Claim(
            "projections are slightly better: B than A, and C than B",
            f"{paper} (Table 3)",
            ", ".join(f"{option} {samples[option]} %" for option in options),
            all_of([above(samples["A"], samples["B"]), above(samples["B"], samples["C"])]),
        ),
        Claim(
            "the options differ less among themselves than the worst of them does from the plain net: "
            "projections are not essential",
            f"{TABLE_3['A'] - TABLE_3['C']:.2f} % among them, "
            f"{TABLE_2['plain', 34] - TABLE_3['A']:.2f} % to the plain net (Table 3)",
            f"{Sample.of(ranges)} % among them, {Sample.of(gains)} % to the plain net",
            above(Sample.of(gains), Sample.of(ranges)),
        ),
    ]


def _run(setting: Setting, option: str, seed: int) -> Run:
    depth = setting.shortcut_depth
    if option == PLAIN:
        return ladder_run(setting, "plain", depth, seed)
    run = ladder_run(setting, "resnet", depth, seed)
    if option == "A":
        return run
    recipe = run.recipe.replace(model_overrides={**run.recipe.model_overrides, "shortcut": option})
    return Run(f"{recipe.model}-shortcut{option}-seed{seed}", recipe, seed)


def _picture(setting: Setting, runs) -> bytes:
    figure = figures.new()
    axes = figure.subplots()
    for (option, found), colour in zip(runs.items(), ("0.5", "C0", "C1", "C2"), strict=True):
        epochs = [row["epoch"] for row in max((run.history for run in found), key=len)]
        series = [[100 - 100 * row["val_top1"] for row in run.history] for run in found]
        figures.band(axes, epochs, series, "-", colour, option if option == PLAIN else f"option {option}")
    axes.set_xlabel("epoch")
    axes.set_ylabel("test error, %")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figures.png(figure)


if __name__ == "__main__":
    command.run(
        sys.modules[__name__],
        name=NAME,
        title=TITLE,
        lead="He et al., 2015: a shortcut must bridge a change of width. Zeros for the new channels cost no "
        "parameter; projections cost some, and help little.",
    )
