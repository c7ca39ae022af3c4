"""What a plan of runs takes, from multiply-adds and a measured speed."""

from collections.abc import Iterable

from experiments.runs import Outcomes, Run
from keras_resnet.data import Dataset, steps_per_epoch
from keras_resnet.models.config import get_config

_TRAINING = 3
"""A training step's multiply-adds over the forward pass': the gradients of activations and of weights."""


def multiply_adds(run: Run, dataset: Dataset) -> float:
    """Of a whole training, to about 5 %.

    Args:
        run: of a CIFAR network: from stage to stage a layer's weights grow fourfold and its pixels shrink
            fourfold, so all layers cost about the same.
        dataset: that it trains on; its splits' sizes are read.
    """
    recipe, config = run.recipe, get_config(run.recipe.model)
    a_layer = 9 * config.stage_filters[0] ** 2 * recipe.image_size**2
    steps = recipe.steps or recipe.epochs * steps_per_epoch(
        dataset.split(recipe.train_split), recipe.batch_size
    )
    return _TRAINING * a_layer * (config.weighted_layers - 2) * steps * recipe.batch_size


def measured_speed(outcomes: Outcomes, dataset: Dataset) -> float:
    """Multiply-adds a second that one of several runs side by side had, in training steps."""
    whole = [outcome for outcome in outcomes.values() if outcome.failure is None]
    work = sum(multiply_adds(outcome.run, dataset) for outcome in whole)
    return work / sum(outcome.seconds for outcome in whole) if whole else float("nan")


def hours(runs: Iterable[Run], dataset: Dataset, speed: float, places: int) -> float:
    """Wall time of a plan at a speed, in hours.

    Args:
        runs: equal names are one run.
        dataset: that they train on.
        speed: multiply-adds a second of each run.
        places: runs at once.
    """
    return sum(multiply_adds(run, dataset) for run in dict.fromkeys(runs)) / speed / places / 3600
