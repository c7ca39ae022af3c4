"""The command line that all experiments share; light, so that --help is quick."""

import importlib
from collections.abc import Sequence

from absl import flags

from experiments.settings import BUDGETS, DATASETS
from keras_resnet import cli
from keras_resnet.quiet import quiet

EXPERIMENTS = ("degradation", "shortcuts", "layer_responses", "gradients", "very_deep", "identity")
"""Modules of `experiments.studies`, in the order of the page of all claims."""


def _define_flags() -> None:
    flags.DEFINE_string("dataset", "digits", f"{', '.join(DATASETS)}.")
    flags.DEFINE_string("budget", "minutes", f"How much is trained: {', '.join(BUDGETS)}.")
    flags.DEFINE_list("depths", None, "Depths to compare, e.g. 20,32,44,56,110. Default: the budget's.")
    flags.DEFINE_integer("seeds", None, "Runs per network. Default: the budget's.")
    flags.DEFINE_multi_string("set", [], "key=value: a field of the recipe, as for train_main.py.")
    flags.DEFINE_string("data_dir", None, "Where TFDS keeps its datasets.")
    flags.DEFINE_string("output_dir", None, "Default: runs/experiments/DATASET-BUDGET.")
    flags.DEFINE_integer(
        "jobs", None, "Number of parallel runs. Default, and maximum with GPUs: one per GPU, else per core."
    )


def run(name: str, experiments: Sequence[str] = (), title: str = "", intro: str = "") -> None:
    """Runs the command that makes one page; never returns.

    Args:
        name: name of the page's folder; without `experiments`, the experiment.
        experiments: names in `EXPERIMENTS`.
        title: heading of the page. Default: the experiment's.
        intro: first paragraph of the page. Default: the experiment's.
    """
    _define_flags()

    def main() -> int:
        with quiet():  # loads TensorFlow, so only after the flags are parsed
            program = importlib.import_module("experiments.program")
        return program.main(flags.FLAGS, name, experiments or (name,), title, intro)

    cli.run(main)
