"""The command lines of the experiments; without TensorFlow, so that --help is quick."""

from typing import NoReturn

from experiments.settings import DETECTION_SETTINGS, SETTINGS, Settings
from keras_resnet import cli
from keras_resnet.cli import Command, Flag

EXPERIMENTS = {
    "degradation": "Deeper plain networks get worse, residual networks do not.",
    "shortcuts": "Shortcut options A, B and C.",
    "layer_responses": "The standard deviations of layer responses (figure 7).",
    "gradients": "Do gradients vanish in deep plain networks?",
    "very_deep": "110 layers with and without warm-up, and 1202 layers.",
    "identity": "Trained networks, made deeper by identity blocks.",
    "exports": "Trained networks as SavedModel, TFLite and ONNX, in float32 and int8.",
}
"""Modules of `experiments.studies` and what each is about, in the order of the page of all claims."""

_COMMON = (
    Flag("depths", "Depths to compare, e.g. 20,32,44,56,110. Default: the budget's.", tuple),
    Flag("seeds", "Runs per network. Default: the budget's.", int),
    Flag("first_seed", "The first of the seeds, which are consecutive.", int, 0),
    Flag("set", "key=value: a field of the recipe, as for train_main.py.", list, []),
    Flag("data_dir", "Where TFDS keeps its datasets."),
    Flag("output_dir", "Default: runs/experiments/DATASET-BUDGET."),
    Flag("jobs", "Number of parallel runs. Default, and maximum with GPUs: one per GPU, else per core.", int),
)


def _command(name: str, about: str, settings: Settings, dataset: str) -> Command:
    datasets, budgets = (", ".join(dict.fromkeys(names)) for names in zip(*settings, strict=True))
    chosen = (
        Flag("dataset", f"{datasets}.", default=dataset),
        Flag("budget", f"How much is trained: {budgets}.", default="minutes"),
    )
    return Command("experiments.program:main", about, (*chosen, *_COMMON), fixed={"name": name})


COMMANDS = {
    name: _command(name, about, SETTINGS, "digits")
    for name, about in {"paper": "All claims that fit a budget, on one page.", **EXPERIMENTS}.items()
}
COMMANDS["detection"] = _command(
    "detection", "Do better classifiers make better detectors?", DETECTION_SETTINGS, "fashion_mnist"
)


def run(name: str) -> NoReturn:
    """Runs one of `COMMANDS` and exits."""
    cli.run(COMMANDS[name])
