"""Training without a task: schedules, distribution, the step, the loop and checkpoints."""

from typing import TYPE_CHECKING

from keras_resnet import lazy

if TYPE_CHECKING:
    from keras_resnet.training.loop import Preempted, TrainingFailed, train
    from keras_resnet.training.options import PRECISIONS, RunOptions
    from keras_resnet.training.recipe import Recipe
    from keras_resnet.training.task import Curve, Task

__all__ = [
    "PRECISIONS",
    "Curve",
    "Preempted",
    "Recipe",
    "RunOptions",
    "Task",
    "TrainingFailed",
    "train",
]

__getattr__ = lazy.attach(
    __name__,
    {
        "loop": ["Preempted", "TrainingFailed", "train"],
        "options": ["PRECISIONS", "RunOptions"],
        "recipe": ["Recipe"],
        "task": ["Curve", "Task"],
    },
)
