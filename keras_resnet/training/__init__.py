"""Training: recipes, schedules, distribution, the step, the loop, checkpoints and reports."""

from keras_resnet.training.loop import PRECISIONS, Machine, Preempted, TrainingFailed, train
from keras_resnet.training.recipe import RECIPES, Recipe, get_recipe

__all__ = [
    "PRECISIONS",
    "RECIPES",
    "Machine",
    "Preempted",
    "Recipe",
    "TrainingFailed",
    "get_recipe",
    "train",
]
