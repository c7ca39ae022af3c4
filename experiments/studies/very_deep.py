"""110 layers with and without warm-up, and 1202: section 4.2, "exploring over 1000 layers"."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import figures, step_cost
from experiments.claims import FAILS, HOLDS, OPEN, Claim, Sample, Verdict, above, similar
from experiments.experiment import Experiment, Groups, diverged, per_seed
from experiments.page import Part, Picture, Table
from experiments.paper_results import TABLE_6
from experiments.runs import Outcome, Run, ladder_run
from experiments.settings import Setting
from keras_resnet.errors import InputError
from keras_resnet.files import write_text
from keras_resnet.training.schedules import ERROR_WINDOW

RATE = 0.1
"""The learning rate at which the paper's ResNet-110 starts late."""
_STARTED = 80.0
"""Training error, %, below which a network has started to converge (section 4.2)."""
_SIMILAR = 1.0
"""Difference in test error, %, up to which accuracies are called similar."""
_CONVERGED = 0.1
"""Training error, %, below which the paper's ResNet-1202 ended (section 4.2)."""

_PEAK = (
    "On CPUs, the peak with --remat occurs while TensorFlow creates the graph, before the first step. It "
    "hardly depends on the number of images, so --remat saves a larger share for larger batches."
)

_WAYS = {True: "with warm-up", False: "without"}
_DEEPEST, _COMPARED = 1202, 110


def report(setting: Setting, groups: Groups) -> tuple[list[Claim], list[Part]]:
    """The start with and without warm-up; whether the deepest network trains, and what a step costs."""
    runs = {warm: groups[warm] for warm in _WAYS}
    found = warmup_claims(
        {warm: [epochs_to_start(run) for run in group] for warm, group in runs.items()},
        {warm: [run.error("val") for run in group] for warm, group in runs.items()},
        setting.warmup_epochs,
    )
    recipe = runs[True][0].run.recipe
    rows = [row for run in (*runs[True], *runs[False]) for row in run.history]
    steps = f" of {rows[0]['step'] / rows[0]['epoch']:.0f} steps" if rows else ""
    body: list[Part] = [
        f"ResNet-110 is trained on {recipe.train_split} for {recipe.epochs:g} epochs{steps} at the paper's "
        f"rate {RATE:g}. With warm-up it begins at {RATE / 10:g} until the training error is below "
        f"{_STARTED:g} %, which is checked every {ERROR_WINDOW} steps. Errors that differ by less than "
        f"{_SIMILAR:g} % are called similar.",
        Picture(
            "very-deep-warmup",
            _picture(runs),
            "Training error of ResNet-110 over the epochs, with and without warm-up",
            "Training error of ResNet-110, mean over seeds; the band is one standard deviation.",
        ),
    ]
    missing = []
    if _DEEPEST in groups:
        (deepest,), compared = groups[_DEEPEST], groups[_COMPARED]
        found.append(_deepest_claim(deepest, compared))
        body.append(_deepest_table(setting, deepest, compared))
    else:
        missing.append("ResNet-1202's training")
    if setting.deepest_batch:
        try:
            costs = _costs(setting.deepest_batch, runs[True][0].folder.path.parent)
            found.append(memory_claim(*costs))
            body += [_cost_table(costs), _PEAK]
        except InputError as error:
            body.append(f"The memory of a training step could not be measured: {error}.")
    else:
        missing.append("its memory with and without --remat")
    if missing:
        body.append(f"Left out at this budget: {' and '.join(missing)}; a larger one has it.")
    body += diverged(runs, "count as guessing")
    return found, body


def epochs_to_start(run: Outcome) -> float:
    """Epochs until the training error of an epoch is below `_STARTED`; infinite if it never is."""
    rows = zip(run.history, run.errors("train"), strict=True)
    return next((row["epoch"] for row, error in rows if error < _STARTED), math.inf)


def warmup_claims(
    starts: Mapping[bool, Sequence[float]], errors: Mapping[bool, Sequence[float]], epochs: float
) -> list[Claim]:
    """The claims of section 4.2 about ResNet-110's warm-up.

    Args:
        starts: for each seed `epochs_to_start`, by whether there was a warm-up.
        errors: last test errors, %, likewise.
        epochs: length of each training; a run that never starts counts as one epoch more.
    """
    start = {warm: Sample.of(min(value, epochs + 1) for value in starts[warm]) for warm in _WAYS}
    error = {warm: Sample.of(errors[warm]) for warm in _WAYS}
    never = {warm: sum(map(math.isinf, starts[warm])) for warm in _WAYS}
    texts = {
        warm: f"{start[warm]}" + f" (never in {never[warm]}, counted as {epochs + 1:g})" * bool(never[warm])
        for warm in _WAYS
    }
    return [
        Claim(
            f"at a rate of {RATE:g} ResNet-110 starts to converge later than with the warm-up",
            "without: error below 90 % after several epochs; with: below 80 % after about 400 steps, one "
            "epoch (section 4.2)",
            f"training error below {_STARTED:g} % after {texts[False]} epochs without, {texts[True]} with",
            *above(start[False], start[True]),
        ),
        Claim(
            "and still reaches similar accuracy",
            f"similar accuracy; {TABLE_6[110]} % with the warm-up (section 4.2, Table 6)",
            f"test error {error[False]} % without, {error[True]} % with",
            *similar(error[False], error[True], _SIMILAR),
        ),
    ]


def trains(errors: Sequence[float], compared: Sample) -> Verdict:
    """Whether a single run's training errors, %, of its epochs show that ResNet-1202 trains like ResNet-110.

    `HOLDS` if its last error is as low as the paper's, or at most one standard deviation above ResNet-110's
    mean; `FAILS` if it did not fall or the run diverged; else `OPEN`: it may have been too short.
    """
    if not errors or (len(errors) > 1 and errors[-1] >= errors[0]):
        return FAILS
    return HOLDS if errors[-1] < _CONVERGED or errors[-1] <= compared.mean + compared.std else OPEN


def memory_claim(kept: Mapping[str, Any], remat: Mapping[str, Any]) -> Claim:
    """Whether rematerialization at least halves the peak memory; takes results of `step_cost.measure`."""
    text = [f"{cost['peak_bytes'] / 1e9:.2f} GB" for cost in (kept, remat)]
    return Claim(
        f"a step of ResNet-1202 with {kept['batch_size']} images takes at most half the memory with --remat",
        "not in the paper",
        f"at most {text[1]} of memory, {text[0]} without; {remat['step_seconds']:.1f} s per step, "
        f"{kept['step_seconds']:.1f} s without",
        HOLDS if 2 * remat["peak_bytes"] <= kept["peak_bytes"] else FAILS,
    )


def _deepest_claim(deepest: Outcome, compared: Sequence[Outcome]) -> Claim:
    errors = deepest.errors("train") if deepest.failure is None else []
    shallower = Sample.of(run.error("train") for run in compared)
    ours = deepest.failure or (
        f"training error {errors[-1]:.2f} % after {deepest.history[-1]['epoch']:g} epochs of "
        f"{deepest.run.recipe.train_split}, from {errors[0]:.2f} %; ResNet-{_COMPARED}: {shallower} %"
    )
    return Claim(
        f"ResNet-{_DEEPEST} shows no optimization difficulty: it trains no worse than ResNet-{_COMPARED}",
        f"training error below {_CONVERGED:g} %; test error {TABLE_6[1202]} % (section 4.2, Table 6)",
        ours,
        trains(errors, shallower),
    )


def _deepest_table(setting: Setting, deepest: Outcome, compared: Sequence[Outcome]) -> Table:
    rows = []
    for index, row in enumerate(deepest.history):
        shallower = [
            Sample.of(run.errors(split)[index] for run in compared if index < len(run.history))
            for split in ("train", "val")
        ]
        ours = [f"{deepest.errors(split)[index]:.2f}" for split in ("train", "val")]
        rows.append([f"{row['epoch']:g}", f"{row['train_loss']:.4f}", *ours, *map(str, shallower)])
    header = [
        "epoch",
        "training loss",
        "training error, %",
        "test error, %",
        f"ResNet-{_COMPARED}: training error, %",
        "test error, %",
    ]
    seconds = deepest.seconds / max(1, deepest.history[-1]["step"]) if deepest.history else math.nan
    recipe = deepest.run.recipe
    caption = (
        f"ResNet-{_DEEPEST} on {setting.dataset}, {recipe.train_split}, one seed, {seconds:.1f} s per step, "
        f"and ResNet-{_COMPARED} with the same training: at a rate of {recipe.learning_rate:g}, after a "
        f"warm-up at {recipe.error_warmup_rate:g} until the training error is below {_STARTED:g} %."
    )
    return Table(header, rows, caption)


def _runs(setting: Setting) -> dict[Any, list[Run]]:
    """ResNet-110 both ways; ResNet-1202 once and ResNet-110 with the same training, if the budget allows."""
    runs: dict[Any, list[Run]] = per_seed(setting, _WAYS, _run)
    if setting.deepest_epochs:
        # ResNet-1202 is too slow for several seeds.
        depths = {_DEEPEST: dataclasses.replace(setting, seeds=1), _COMPARED: setting}
        for depth, repeated in depths.items():
            runs |= per_seed(repeated, [depth], _short_run)
    return runs


def _short_run(setting: Setting, depth: int, seed: int) -> Run:
    run = ladder_run(setting.short, "resnet", depth, seed)
    recipe = run.recipe.replace(epochs=setting.deepest_epochs, steps=None)
    return Run(f"{run.name}-deepest", recipe, seed)


def _run(setting: Setting, warm: bool, seed: int) -> Run:
    recipe = setting.short.recipe.replace(
        model="cifar_resnet110",
        learning_rate=RATE,
        error_warmup_rate=RATE / 10 if warm else 0,
        epochs=setting.warmup_epochs,
        steps=None,
    )
    return Run(f"cifar_resnet110-{'warm' if warm else 'cold'}-seed{seed}", recipe, seed)


def _costs(batch_size: int, folder: Path) -> list[dict[str, Any]]:
    """The costs of a step without and with rematerialization; measured once and saved in the folder."""
    costs = []
    for remat in (False, True):
        path = folder / f"cifar_resnet1202-batch{batch_size}{'-remat' * remat}.json"
        if not path.exists():
            write_text(path, json.dumps(step_cost.measure("cifar_resnet1202", batch_size, remat)) + "\n")
        costs.append(json.loads(path.read_text()))
    return costs


def _cost_table(costs: Sequence[Mapping[str, Any]]) -> Table:
    columns = {
        "peak memory, GB": ("peak_bytes", 1e9, ".2f"),
        "of it before the network, GB": ("base_bytes", 1e9, ".2f"),
        "build, s": ("build_seconds", 1, ".0f"),
        "first step, s": ("first_step_seconds", 1, ".0f"),
        "step, s": ("step_seconds", 1, ".1f"),
    }
    rows = [[f"{cost[key] / unit:{digits}}" for key, unit, digits in columns.values()] for cost in costs]
    for cost, row in zip(costs, rows, strict=True):
        row.insert(0, "recomputed (--remat)" if cost["remat"] else "kept")
    caption = f"A training step of ResNet-1202 on {costs[0]['batch_size']} images of 32x32 pixels."
    return Table(["activations", *columns], rows, caption)


def _picture(runs: Groups) -> bytes:
    from matplotlib.ticker import MaxNLocator

    figure = figures.new()
    axes = figure.subplots()
    for (warm, found), color in zip(runs.items(), ("C0", "C3"), strict=True):
        figures.error_curves(axes, found, "train", "-", color, _WAYS[warm])
    axes.axhline(_STARTED, color="0.5", linewidth=0.8)
    axes.set(xlabel="epoch", ylabel="training error, %", ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figures.png(figure)


EXPERIMENT = Experiment(
    name="very_deep",
    title="110 layers with and without warm-up, and 1202",
    intro="He et al., 2015: a network of 110 layers wants a gentle start at a rate of 0.1; one of 1202 "
    "layers trains like the others.",
    runs=_runs,
    report=report,
)
