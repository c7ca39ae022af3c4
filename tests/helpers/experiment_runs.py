"""Runs of experiments, trained without a process for each."""

import contextlib

from keras_resnet.classification import train
from keras_resnet.training import RunOptions, TrainingFailed


def train_here(runs, folder, **options):
    """Trains classifiers as the experiments' workers do; one that diverges is left to the experiment."""
    for run in dict.fromkeys(runs):
        chosen = RunOptions(seed=run.seed, keep=run.keep, strategy="one_device", **options)
        with contextlib.suppress(TrainingFailed):
            train(run.recipe, folder / run.name, chosen)
