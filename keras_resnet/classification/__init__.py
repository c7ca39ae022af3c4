"""Classification: recipes, training, and evaluation with the paper's test protocols."""

from typing import TYPE_CHECKING

from keras_resnet import lazy

if TYPE_CHECKING:
    from keras_resnet.classification.evaluation import Evaluation, EvaluationFailed, evaluate
    from keras_resnet.classification.members import Member, find_member
    from keras_resnet.classification.metrics import Metrics
    from keras_resnet.classification.protocols import PROTOCOLS, Protocol, fully_convolutional
    from keras_resnet.classification.recipe import RECIPES, ClassificationRecipe, get_recipe
    from keras_resnet.classification.report import table, write_report
    from keras_resnet.classification.task import ClassificationTask, train

__all__ = [
    "PROTOCOLS",
    "RECIPES",
    "ClassificationRecipe",
    "ClassificationTask",
    "Evaluation",
    "EvaluationFailed",
    "Member",
    "Metrics",
    "Protocol",
    "evaluate",
    "find_member",
    "fully_convolutional",
    "get_recipe",
    "table",
    "train",
    "write_report",
]

__getattr__ = lazy.attach(
    __name__,
    {
        "evaluation": ["Evaluation", "EvaluationFailed", "evaluate"],
        "members": ["Member", "find_member"],
        "metrics": ["Metrics"],
        "protocols": ["PROTOCOLS", "Protocol", "fully_convolutional"],
        "recipe": ["RECIPES", "ClassificationRecipe", "get_recipe"],
        "report": ["table", "write_report"],
        "task": ["ClassificationTask", "train"],
    },
)
