"""The command that all experiments share: flags, the runs, the page."""

import dataclasses
import importlib.metadata
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from absl import flags

from experiments import cost, page
from experiments.runs import Outcomes, RunFailed, cores, is_done, places, run_all, stop_on_sigterm
from experiments.settings import BUDGETS, DATASETS, Setting, get_setting
from keras_resnet import InputError, cli
from keras_resnet.data import Dataset, open_dataset
from keras_resnet.files import write_text
from keras_resnet.models.config import MODELS
from keras_resnet.training import Recipe
from keras_resnet.version import __version__


def _define_flags() -> None:
    flags.DEFINE_string("dataset", "digits", f"{', '.join(DATASETS)}.")
    flags.DEFINE_string("budget", "minutes", f"How much is trained: {', '.join(BUDGETS)}.")
    flags.DEFINE_list("depths", None, "The ladder, such as 20,32,44,56,110, instead of the budget's.")
    flags.DEFINE_integer("seeds", None, "Runs of each network, instead of the budget's.")
    flags.DEFINE_multi_string("set", [], "key=value: a field of the recipe, as for train_main.py.")
    flags.DEFINE_string("data_dir", None, "Where TFDS keeps its datasets.")
    flags.DEFINE_string("output_dir", None, "Default: runs/experiments/DATASET-BUDGET.")
    flags.DEFINE_integer(
        "jobs", None, "Runs at once. Default and most with GPUs: one each; without: one a core."
    )


def run(*experiments: ModuleType, name: str, title: str, lead: str) -> None:
    """Runs a program that makes one page of the experiments; never returns.

    Args:
        *experiments: modules with `plan` and `report`.
        name: of the page's folder.
        title: of the page.
        lead: its first paragraph.
    """
    _define_flags()

    def main():
        with stop_on_sigterm():
            return _main(experiments, name, title, lead)

    cli.run(main)


def make_setting(
    dataset: str,
    budget: str,
    depths: Sequence[str] | None = None,
    seeds: int | None = None,
    assignments: Sequence[str] = (),
    data_dir: str | None = None,
) -> Setting:
    """The budget's setting, as the flags change it.

    Args:
        dataset: of `DATASETS`.
        budget: of `BUDGETS`.
        depths: of the ladder, as texts.
        seeds: runs of each network.
        assignments: key=value texts that change the recipe.
        data_dir: where TFDS keeps its datasets.

    Raises:
        InputError: an argument is wrong.
    """
    setting = get_setting(dataset, budget)
    changes = {"data_dir": data_dir, "recipe": setting.recipe.set(assignments)}
    _check_recipe(changes["recipe"], setting.recipe)
    if depths is not None:
        changes["depths"] = _depths(depths)
    if seeds is not None:
        if seeds < 1:
            raise InputError(f"--seeds must be at least 1; got {seeds}")
        changes["seeds"] = seeds
    return dataclasses.replace(setting, **changes)


def _check_recipe(recipe: Recipe, held: Recipe) -> None:
    """Refuses what would make a page say something that its runs do not."""
    if recipe.dataset != held.dataset:
        raise InputError("--set does not change the dataset; --dataset does")
    fixed = [
        name for name in ("model", "weights", "val_split") if getattr(recipe, name) != getattr(held, name)
    ]
    fixed += [f"model.{name}" for name in ("shortcut", "batch_norm") if name in recipe.model_overrides]
    if fixed:
        raise InputError(f"--set cannot change {fixed[0]}: it is what the experiments compare")


def _depths(texts: Sequence[str]) -> tuple[int, ...]:
    known = sorted(int(name.removeprefix("cifar_plain")) for name in MODELS if name.startswith("cifar_plain"))
    depths = tuple(int(text) if text.strip().isdigit() else text for text in texts)
    if len(depths) < 2 or list(depths) != sorted(set(depths) & set(known)):
        raise InputError(
            f"--depths takes two or more of {', '.join(map(str, known))}, rising; got {','.join(texts)}"
        )
    return depths


def _main(experiments: Sequence[ModuleType], name: str, title: str, lead: str) -> int:
    begun = time.perf_counter()
    options = flags.FLAGS
    setting = make_setting(
        *(options.dataset, options.budget, options.depths, options.seeds, options.set, options.data_dir)
    )
    if options.jobs is not None and options.jobs < 1:
        raise InputError(f"--jobs must be at least 1; got {options.jobs}")
    # Refuses what is not there before anything is made.
    dataset = open_dataset(setting.dataset, setting.data_dir)
    folder = Path(options.output_dir or f"runs/experiments/{setting.dataset}-{setting.budget}")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {folder} is a file")
    try:
        runs = [run for experiment in experiments for run in experiment.plan(setting)]
        done = sum(is_done(run, folder / "runs") for run in dict.fromkeys(runs))
        outcomes = run_all(runs, folder / "runs", data_dir=setting.data_dir, jobs=options.jobs)
        sections = [experiment.report(setting, outcomes, folder) for experiment in experiments]
        facts = {
            **_facts(setting, outcomes, time.perf_counter() - begun, done),
            **_sharper(experiments, setting, outcomes, dataset),
        }
        path = page.write_page(folder / name / "report.html", title, lead, sections, facts)
        write_text(path.with_name("README.md"), page.summary_markdown(title, lead, sections, facts))
    except RunFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the runs left checkpoints, and the same command goes on", file=sys.stderr)
        return 143
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from None
    for section in sections:
        print(f"\n{section.title}")
        for claim in section.claims:
            print(f"  {claim.verdict:>13}: {claim.statement}")
            print(f"{'':>17}here: {claim.ours}; paper: {claim.paper}")
    print(f"\n{path}")
    return 0


def _facts(setting: Setting, outcomes: Outcomes, seconds: float, done: int) -> dict[str, str]:
    recipe = setting.recipe
    versions = {name: importlib.metadata.version(name) for name in ("keras", "tensorflow", "numpy")}
    return {
        "command": _command(),
        "recipe, where a section names no other": ", ".join(
            f"{key} {value}" for key, value in recipe.to_dict().items() if not key.startswith("model")
        ),
        "runs": f"{len(outcomes)}, {_duration(sum(outcome.seconds for outcome in outcomes.values()))} of "
        "training steps in all",
        "this command took": _duration(seconds)
        + f"; {done} of the {len(outcomes)} runs were finished before" * bool(done),
        "machine": f"{platform.system()} {platform.machine()}, {cores()} cores",
        "versions": ", ".join(
            [f"keras_resnet {__version__}", f"Python {platform.python_version()}"]
            + [f"{name} {version}" for name, version in versions.items()]
        ),
    }


def _sharper(experiments, setting: Setting, outcomes: Outcomes, dataset: Dataset) -> dict[str, str]:
    """What the next budget would take on this machine."""
    following = BUDGETS[BUDGETS.index(setting.budget) + 1 :]
    if not following:
        return {}
    larger = get_setting(setting.dataset, following[0])
    runs = [run for experiment in experiments for run in experiment.plan(larger)]
    hours = cost.hours(runs, dataset, cost.measured_speed(outcomes, dataset), places(flags.FLAGS.jobs))
    networks = f"depths {', '.join(map(str, larger.depths))}, {larger.seeds} seeds"
    text = f"--budget={following[0]} ({networks}): at most about {hours:.1f} h at this speed"
    return {"a sharper picture": text}


def _command() -> str:
    module = sys.modules["__main__"].__spec__.name
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
