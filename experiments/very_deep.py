"""110 layers with and without warm-up, and 1202: section 4.2, "exploring over 1000 layers"."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import command, figures, step_cost
from experiments.claims import FAILS, HOLDS, OPEN, Claim, Sample, Verdict, above, similar
from experiments.page import Picture, Section, Table
from experiments.paper_results import TABLE_6
from experiments.runs import Outcome, Outcomes, Run, given_up, ladder_run
from experiments.settings import Setting
from keras_resnet import InputError
from keras_resnet.files import write_text
from keras_resnet.training.schedules import ERROR_WINDOW

NAME = "very_deep"
TITLE = "110 layers with and without warm-up, and 1202"

RATE = 0.1
"""At which the paper saw ResNet-110 start late."""
STARTED = 80.0
"""Training error, %, below which a net has started to converge (section 4.2)."""
SIMILAR = 1.0
"""Difference in test error, %, up to which accuracies are called similar here."""
CONVERGED = 0.1
"""Training error, %, that ResNet-1202 went below (section 4.2)."""

_WAYS = {True: "with warm-up", False: "without"}


def plan(setting: Setting) -> list[Run]:
    """ResNet-110 both ways, and ResNet-1202 once."""
    runs = [_run(setting, warm, seed) for seed in range(setting.seeds) for warm in _WAYS]
    return [*runs, _deepest(setting)] if setting.deepest_epochs else runs


def report(setting: Setting, outcomes: Outcomes, folder: Path) -> Section:
    """The starts of both ways; what a step of the deepest takes, and whether it trains."""
    runs = {warm: [outcomes[_run(setting, warm, seed)] for seed in range(setting.seeds)] for warm in _WAYS}
    deepest = outcomes[_deepest(setting)] if setting.deepest_epochs else None
    costs = _costs(setting, folder)
    told = warmup_claims(
        {warm: [epochs_to_start(run) for run in found] for warm, found in runs.items()},
        {warm: [run.error("val") for run in found] for warm, found in runs.items()},
        setting.warmup_epochs,
    )
    body = [
        f"ResNet-110 at the paper's rate {RATE:g}; with warm-up it begins at {RATE / 10:g} until the "
        f"training error is below {STARTED:g} %, which is looked at every {ERROR_WINDOW} steps. Errors that "
        f"differ by less than {SIMILAR:g} % are called similar.",
        Picture(
            "very-deep-warmup",
            _picture(runs),
            "Training error of ResNet-110 over the epochs, with and without warm-up",
            "Training error of ResNet-110, mean over seeds; the band is one standard deviation.",
        ),
    ]
    if deepest is not None:
        told.append(_deepest_claim(deepest))
        rows = [
            [
                f"{row['epoch']:g}",
                f"{row['train_loss']:.4f}",
                *(f"{100 - 100 * row[f'{split}_top1']:.2f}" for split in ("train", "val")),
            ]
            for row in deepest.history
        ]
        header = ["epoch", "training loss", "training error, %", "test error, %"]
        seconds = deepest.seconds / max(1, deepest.history[-1]["step"]) if deepest.history else math.nan
        body.append(
            Table(header, rows, f"ResNet-1202 on {setting.dataset}, one seed, {seconds:.1f} s a step.")
        )
    if isinstance(costs, str):
        body.append(costs)
    elif costs:
        told.append(memory_claim(*costs))
        body.append(_cost_table(costs))
    missing = [
        text
        for text, there in (
            ("ResNet-1202's training", deepest),
            ("its memory with and without --remat", costs),
        )
        if not there
    ]
    if missing:
        body.append(f"Left out at this budget: {' and '.join(missing)}; a larger one has it.")
    body += given_up(run for found in runs.values() for run in found)
    return Section(TITLE, told, body, NAME)


def epochs_to_start(run: Outcome) -> float:
    """Epochs until the training error of an epoch is below `STARTED`; infinite if it never is."""
    for row in run.history:
        if 100 - 100 * row["train_top1"] < STARTED:
            return row["epoch"]
    return math.inf


def warmup_claims(
    starts: Mapping[bool, Sequence[float]], errors: Mapping[bool, Sequence[float]], epochs: float
) -> list[Claim]:
    """What section 4.2 says of ResNet-110's first rate.

    Args:
        starts: epochs to the start, one a seed, by whether there was a warm-up; infinite for none.
        errors: last test errors, %, likewise.
        epochs: of each training; a run that never starts counts as one more.
    """
    start = {warm: Sample.of(min(value, epochs + 1) for value in starts[warm]) for warm in _WAYS}
    error = {warm: Sample.of(errors[warm]) for warm in _WAYS}
    never = {warm: sum(map(math.isinf, starts[warm])) for warm in _WAYS}
    told = {
        warm: f"{start[warm]}" + f" (never in {never[warm]}, counted as {epochs + 1:g})" * bool(never[warm])
        for warm in _WAYS
    }
    return [
        Claim(
            f"at a rate of {RATE:g} ResNet-110 starts to converge later than with the warm-up",
            "without: error below 90 % after several epochs; with: below 80 % after about 400 steps, one "
            "epoch (section 4.2)",
            f"training error below {STARTED:g} % after {told[False]} epochs without, {told[True]} with",
            above(start[False], start[True]),
        ),
        Claim(
            "and still reaches similar accuracy",
            f"similar accuracy; {TABLE_6[110]} % with the warm-up (section 4.2, Table 6)",
            f"test error {error[False]} % without, {error[True]} % with",
            similar(error[False], error[True], SIMILAR),
        ),
    ]


def trains(errors: Sequence[float]) -> Verdict:
    """Whether a single run's training errors, %, by epoch, show that ResNet-1202 trains.

    `HOLDS` below `CONVERGED`, `FAILS` where the error did not fall or the run gave up; else it may have
    been too short: `OPEN`.
    """
    if not errors or (len(errors) > 1 and errors[-1] >= errors[0]):
        return FAILS
    return HOLDS if errors[-1] < CONVERGED else OPEN


def memory_claim(kept: Mapping, remat: Mapping) -> Claim:
    """Whether rematerialization cuts the peak memory at least by half; arguments of `step_cost.measure`."""
    text = [f"{cost['peak_bytes'] / 1e9:.2f} GB" for cost in (kept, remat)]
    return Claim(
        f"a step of ResNet-1202 with {kept['batch_size']} images takes at most half the memory with --remat",
        "not in the paper",
        f"at most {text[1]} of memory, {text[0]} without; {remat['step_seconds']:.0f} s a step, "
        f"{kept['step_seconds']:.0f} s without",
        HOLDS if 2 * remat["peak_bytes"] <= kept["peak_bytes"] else FAILS,
    )


def _deepest_claim(deepest: Outcome) -> Claim:
    errors = [100 - 100 * row["train_top1"] for row in deepest.history]
    if deepest.failure is not None:
        ours, errors = deepest.failure, []
    else:
        epochs = deepest.history[-1]["epoch"]
        ours = f"training error {errors[-1]:.2f} % after {epochs:g} epochs, from {errors[0]:.2f} %"
    return Claim(
        "ResNet-1202 shows no optimization difficulty",
        f"training error below {CONVERGED:g} %; test error {TABLE_6[1202]} % (section 4.2, Table 6)",
        ours,
        trains(errors),
    )


def _run(setting: Setting, warm: bool, seed: int) -> Run:
    recipe = setting.recipe.replace(
        model="cifar_resnet110",
        learning_rate=RATE,
        error_warmup_rate=RATE / 10 if warm else 0,
        epochs=setting.warmup_epochs,
        steps=None,
    )
    return Run(f"cifar_resnet110-{'warm' if warm else 'cold'}-seed{seed}", recipe, seed)


def _deepest(setting: Setting) -> Run:
    run = ladder_run(setting, "resnet", 1202, 0)
    return Run(f"{run.name}-deepest", run.recipe.replace(epochs=setting.deepest_epochs, steps=None), 0)


def _costs(setting: Setting, folder: Path) -> list[dict] | str:
    """What a step takes, without and with rematerialization; measured once. A sentence if it cannot be."""
    if not setting.deepest_batch:
        return []
    costs = []
    for remat in (False, True):
        path = folder / "runs" / f"cifar_resnet1202-batch{setting.deepest_batch}{'-remat' * remat}.json"
        if not path.exists():
            try:
                cost = step_cost.measure("cifar_resnet1202", setting.deepest_batch, remat)
            except InputError as error:
                return f"The memory that a step takes could not be measured: {error}."
            write_text(path, json.dumps(cost) + "\n")
        costs.append(json.loads(path.read_text()))
    return costs


def _cost_table(costs: Sequence[Mapping]) -> Table:
    rows = [
        [
            "recomputed (--remat)" if cost["remat"] else "kept",
            f"{cost['peak_bytes'] / 1e9:.2f}",
            f"{cost['base_bytes'] / 1e9:.2f}",
            f"{cost['build_seconds']:.0f}",
            f"{cost['first_step_seconds']:.0f}",
            f"{cost['step_seconds']:.1f}",
        ]
        for cost in costs
    ]
    header = [
        "activations",
        "peak memory, GB",
        "of it before the network, GB",
        "build, s",
        "first step, s",
        "step, s",
    ]
    caption = f"A training step of ResNet-1202 on {costs[0]['batch_size']} images of 32x32 pixels."
    return Table(header, rows, caption)


def _picture(runs: Mapping[bool, Sequence[Outcome]]) -> bytes:
    figure = figures.new()
    axes = figure.subplots()
    for (warm, found), colour in zip(runs.items(), ("C0", "C3"), strict=True):
        epochs = [row["epoch"] for row in max((run.history for run in found), key=len)]
        series = [[100 - 100 * row["train_top1"] for row in run.history] for run in found]
        figures.band(axes, epochs, series, "-", colour, _WAYS[warm])
    axes.axhline(STARTED, color="0.5", linewidth=0.8)
    axes.set_xlabel("epoch")
    axes.set_ylabel("training error, %")
    axes.set_ylim(0, 100)
    axes.legend()
    return figures.png(figure)


if __name__ == "__main__":
    command.run(
        sys.modules[__name__],
        name=NAME,
        title=TITLE,
        lead="He et al., 2015: a network of 110 layers wants a gentle start at a rate of 0.1; one of 1202 "
        "layers trains like the others.",
    )
