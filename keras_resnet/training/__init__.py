"""Training: recipes, schedules, distribution, the step, the loop, checkpoints and reports."""

from typing import TYPE_CHECKING

from keras_resnet import lazy

if TYPE_CHECKING:
    from keras_resnet.training.loop import Preempted, TrainingFailed, train
    from keras_resnet.training.options import PRECISIONS, RunOptions
    from keras_resnet.training.recipe import RECIPES, Recipe, get_recipe

__all__ = [
    "PRECISIONS",
    "RECIPES",
    "Preempted",
    "Recipe",
    "RunOptions",
    "TrainingFailed",
    "get_recipe",
    "train",
]

__getattr__ = lazy.attach(
    __name__,
    {
        "loop": ["Preempted", "TrainingFailed", "train"],
        "options": ["PRECISIONS", "RunOptions"],
        "recipe": ["RECIPES", "Recipe", "get_recipe"],
    },
)
