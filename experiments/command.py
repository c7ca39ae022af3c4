"""The command line that all experiments share; light, so that --help is quick."""

from collections.abc import Sequence

from experiments.settings import BUDGETS, DATASETS
from keras_resnet.cli import Command, Flag

EXPERIMENTS = ("degradation", "shortcuts", "layer_responses", "gradients", "very_deep", "identity")
"""Modules of `experiments.studies`, in the order of the page of all claims."""

_FLAGS = (
    Flag("dataset", f"{', '.join(DATASETS)}.", default="digits"),
    Flag("budget", f"How much is trained: {', '.join(BUDGETS)}.", default="minutes"),
    Flag("depths", "Depths to compare, e.g. 20,32,44,56,110. Default: the budget's.", tuple),
    Flag("seeds", "Runs per network. Default: the budget's.", int),
    Flag("set", "key=value: a field of the recipe, as for train_main.py.", list, []),
    Flag("data_dir", "Where TFDS keeps its datasets."),
    Flag("output_dir", "Default: runs/experiments/DATASET-BUDGET."),
    Flag("jobs", "Number of parallel runs. Default, and maximum with GPUs: one per GPU, else per core.", int),
)


def command_of(
    name: str, about: str, experiments: Sequence[str] = (), title: str = "", intro: str = ""
) -> Command:
    """The command that makes one page.

    Args:
        name: name of the page's folder; without `experiments`, the experiment.
        about: what the command is about.
        experiments: names in `EXPERIMENTS`.
        title: heading of the page. Default: the experiment's.
        intro: first paragraph of the page. Default: the experiment's.
    """
    fixed = {"name": name, "experiments": experiments or (name,), "title": title, "intro": intro}
    return Command("experiments.program:main", about, _FLAGS, fixed=fixed)
