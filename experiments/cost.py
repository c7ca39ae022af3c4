"""Estimates the duration of runs from their multiply-adds and a measured speed."""

from collections.abc import Iterable

from experiments.runs import Outcomes, Run
from keras_resnet.classification.recipe import ClassificationRecipe
from keras_resnet.data import Dataset, steps_per_epoch
from keras_resnet.models.config import get_config

# Multiply-adds of a training step over those of its forward pass: the gradients of activations and of
# weights take as many each.
_TRAINING = 3


def multiply_adds(run: Run, dataset: Dataset) -> float:
    """The multiply-adds of a CIFAR network's whole training, to about 5 %.

    From stage to stage a layer's weights grow fourfold and its pixels shrink fourfold, so all layers cost
    about the same.
    """
    recipe, config = run.recipe, get_config(run.recipe.model)
    assert isinstance(recipe, ClassificationRecipe)
    per_layer = 9 * config.stage_filters[0] ** 2 * recipe.image_size**2
    split = dataset.split(recipe.train_split)
    steps = recipe.steps or recipe.epochs * steps_per_epoch(split, recipe.batch_size)
    return _TRAINING * per_layer * (config.weighted_layers - 2) * steps * recipe.batch_size


def measured_speed(outcomes: Outcomes, dataset: Dataset) -> float:
    """Multiply-adds per second of one of several parallel runs; NaN if all of them diverged."""
    finished = [outcome for outcome in outcomes.values() if outcome.failure is None]
    work = sum(multiply_adds(outcome.run, dataset) for outcome in finished)
    return work / sum(outcome.seconds for outcome in finished) if finished else float("nan")


def hours(runs: Iterable[Run], dataset: Dataset, speed: float, places: int) -> float:
    """The hours that `places` parallel runs, each with `speed` multiply-adds per second, take for all."""
    return sum(multiply_adds(run, dataset) for run in dict.fromkeys(runs)) / speed / places / 3600
