"""The experiments' commands: train what is missing, then write the page."""

import dataclasses
import functools
import importlib
import importlib.metadata
import platform
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from experiments import cost, page
from experiments.command import EXPERIMENTS
from experiments.experiment import Experiment
from experiments.runs import Outcomes, Run, is_done, run_all, slots
from experiments.settings import BUDGETS, SETTINGS, Setting, Settings, get_setting
from experiments.significance import significance_section
from keras_resnet.classification.recipe import ClassificationRecipe
from keras_resnet.data import Dataset, open_dataset
from keras_resnet.errors import InputError
from keras_resnet.files import write_text
from keras_resnet.models.config import MODELS
from keras_resnet.processes import cores
from keras_resnet.training.recipe import Recipe
from keras_resnet.version import versions

_PAPER = (
    "Deep Residual Learning, claim by claim",
    "What He et al. (2015) say about depth and shortcuts, what they measured, and what these runs "
    "measured. A verdict compares means over seeds with their spread. A difference within the spread is "
    "not decided; but a claim that one value is not above another holds if the difference is within it.",
)
"""The heading and the first paragraph of the page of all claims."""

_DETECTOR = "detector."
_FIXED = ("model", "model.network", "dataset", "weights", "backbone_weights", "freeze", "statistics_batches")
"""Keys of the detectors' recipe that the experiment sets."""

_Recipe = TypeVar("_Recipe", bound=Recipe)


def make_setting(
    dataset: str,
    budget: str,
    depths: Sequence[str] | None = None,
    seeds: int | None = None,
    first_seed: int = 0,
    assignments: Sequence[str] = (),
    data_dir: str | None = None,
    settings: Settings = SETTINGS,
) -> Setting:
    """The budget's setting with the changes of the flags; `assignments` are those of `--set`.

    Assignments whose keys begin with `detector.` change the recipe of the detectors, except what the
    experiment sets.

    Raises:
        InputError: a value is wrong.
    """
    setting = get_setting(dataset, budget, settings)
    recipe, detector = setting.recipe, setting.detector
    if detector is not None:
        theirs = [text.removeprefix(_DETECTOR) for text in assignments if text.startswith(_DETECTOR)]
        for key in (text.partition("=")[0] for text in theirs):
            if key in _FIXED:
                raise InputError(f"--set cannot change {_DETECTOR}{key}: the experiment sets it")
        detector = _changed(detector, theirs)
        assignments = [text for text in assignments if not text.startswith(_DETECTOR)]
    recipe = _changed(recipe, assignments)
    checked = setting.depths if depths is None else _depths(depths)
    seeds = setting.seeds if seeds is None else seeds
    if seeds < 1:
        raise InputError(f"--seeds must be at least 1; got {seeds}")
    if first_seed < 0:
        raise InputError(f"--first_seed must not be negative; got {first_seed}")
    runs = {"depths": checked, "seeds": seeds, "first_seed": first_seed}
    return dataclasses.replace(setting, data_dir=data_dir, recipe=recipe, detector=detector, **runs)


def _changed(recipe: _Recipe, assignments: Sequence[str]) -> _Recipe:
    """The recipe with `--set`'s changes; refuses those of what the experiments compare."""
    changed = recipe.set(assignments)
    if changed.dataset != recipe.dataset:
        raise InputError("--set does not change the dataset; --dataset does")
    names = ("model", "weights", "backbone_weights", "val_split")
    fixed = [name for name in names if getattr(changed, name, None) != getattr(recipe, name, None)]
    fixed += [f"model.{name}" for name in ("shortcut", "batch_norm") if name in changed.model_overrides]
    if fixed:
        raise InputError(f"--set cannot change {fixed[0]}: it is what the experiments compare")
    return changed


def _depths(texts: Sequence[str]) -> tuple[int, ...]:
    known = sorted(int(name.removeprefix("cifar_plain")) for name in MODELS if name.startswith("cifar_plain"))
    depths = [int(text) for text in texts if text.strip().isdigit()]
    if not 2 <= len(depths) == len(texts) or depths != sorted(set(depths) & set(known)):
        raise InputError(
            f"--depths takes two or more of {', '.join(map(str, known))}, rising; got {','.join(texts)}"
        )
    return tuple(depths)


def main(name: str, set: Sequence[str], output_dir: str | None, jobs: int | None, **flags: Any) -> int:
    """Trains what is missing and writes the page of an experiment, or of all for the name "paper"."""
    names = EXPERIMENTS if name == "paper" else (name,)
    chosen = [importlib.import_module(f"experiments.studies.{study}").EXPERIMENT for study in names]
    setting = make_setting(assignments=set, settings=chosen[0].settings, **flags)
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs must be at least 1; got {jobs}")
    dataset = open_dataset(setting.dataset, setting.data_dir)  # fails before anything is written
    folder = Path(output_dir or f"runs/experiments/{setting.dataset}-{setting.budget}")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {folder} is a file")
    title, intro = _PAPER if name == "paper" else (chosen[0].title, chosen[0].intro)
    # SIGTERM, like Ctrl-C, lets the runs stop with checkpoints.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sections, environment = _carry_out(chosen, setting, dataset, folder, jobs)
        path = page.write_page(folder / name / "report.html", title, intro, sections, environment)
        write_text(path.with_name("README.md"), page.summary_markdown(title, intro, sections, environment))
    except KeyboardInterrupt:
        print("stopped; the runs saved checkpoints, and the same command resumes them", file=sys.stderr)
        return 143
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from None
    finally:
        signal.signal(signal.SIGTERM, before)
    for section in sections:
        if not section.claims:
            continue
        print(f"\n{section.title}")
        for claim in section.claims:
            print(f"  {claim.verdict:>13}: {claim.statement}")
            print(f"{'':>17}here: {claim.ours}; paper: {claim.paper}")
    print(f"\n{path}")
    return 0


def _carry_out(
    experiments: Sequence[Experiment], setting: Setting, dataset: Dataset, folder: Path, jobs: int | None
) -> tuple[list[page.Section], dict[str, str]]:
    """The sections of the page, and what it says about how it was made."""
    begun = time.perf_counter()
    runs = _plan(experiments, setting)
    done = sum(is_done(run, folder / "runs") for run in runs)
    # No multiply-adds are counted for detectors.
    estimate = {} if setting.detector else {"work": functools.partial(cost.multiply_adds, dataset=dataset)}
    outcomes = run_all(runs, folder / "runs", data_dir=setting.data_dir, jobs=jobs, **estimate)
    sections = [experiment.section(setting, outcomes) for experiment in experiments]
    if tests := significance_section(sections):
        sections.append(tests)
    environment = _environment(setting, outcomes, time.perf_counter() - begun, done)
    following = () if setting.detector else BUDGETS[BUDGETS.index(setting.budget) + 1 :]
    if following:
        larger = get_setting(setting.dataset, following[0])
        speed = cost.measured_speed(outcomes, dataset)
        hours = cost.hours(_plan(experiments, larger), dataset, speed, len(slots(jobs)))
        networks = f"depths {', '.join(map(str, larger.depths))}, {larger.seeds} seeds"
        environment["next budget"] = (
            f"--budget={following[0]} ({networks}): at most about {hours:.1f} h at this speed"
        )
    return sections, environment


def _plan(experiments: Sequence[Experiment], setting: Setting) -> list[Run]:
    return list(dict.fromkeys(run for experiment in experiments for run in experiment.plan(setting)))


def _environment(setting: Setting, outcomes: Outcomes, seconds: float, done: int) -> dict[str, str]:
    spec = sys.modules["__main__"].__spec__
    program = spec.name.removesuffix(".__main__") if spec else ""
    if setting.detector is None:
        recipes: dict[str, Recipe] = {"recipe, unless a section names another": setting.recipe}
    else:
        recipes = {"recipe of the classifiers": setting.recipe, "recipe of the detectors": setting.detector}
    found = versions("keras", "tensorflow", "numpy").items()
    training = sum(outcome.seconds for outcome in outcomes.values())
    return {
        "command": shlex.join(["python", "-m", program, *sys.argv[1:]]),
        **{name: _fields(recipe) for name, recipe in recipes.items()},
        "runs": f"{len(outcomes)}, {_duration(training)} of training steps in total",
        "this command took": _duration(seconds)
        + f"; {done} of the {len(outcomes)} runs were finished before" * bool(done),
        "machine": f"{platform.system()} {platform.machine()}, {len(cores())} cores",
        "versions": ", ".join(f"{name} {version}" for name, version in found),
    }


def _fields(recipe: Recipe) -> str:
    # A classifier's overrides are empty unless --set changed them, and the command says so.
    hidden = ("model", "model_overrides") if isinstance(recipe, ClassificationRecipe) else ("model",)
    return ", ".join(f"{key} {value}" for key, value in recipe.to_dict().items() if key not in hidden)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
