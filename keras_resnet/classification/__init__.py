"""Classification: recipes, training, and evaluation with the paper's test protocols."""

from typing import TYPE_CHECKING

from keras_resnet import lazy

if TYPE_CHECKING:
    from keras_resnet.classification.evaluated_model import EvaluatedModel, load_evaluated_model
    from keras_resnet.classification.evaluation import Evaluation, EvaluationFailed, evaluate
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
    "EvaluatedModel",
    "Evaluation",
    "EvaluationFailed",
    "Metrics",
    "Protocol",
    "evaluate",
    "fully_convolutional",
    "get_recipe",
    "load_evaluated_model",
    "table",
    "train",
    "write_report",
]

__getattr__ = lazy.attach(
    __name__,
    {
        "evaluation": ["Evaluation", "EvaluationFailed", "evaluate"],
        "evaluated_model": ["EvaluatedModel", "load_evaluated_model"],
        "metrics": ["Metrics"],
        "protocols": ["PROTOCOLS", "Protocol", "fully_convolutional"],
        "recipe": ["RECIPES", "ClassificationRecipe", "get_recipe"],
        "report": ["table", "write_report"],
        "task": ["ClassificationTask", "train"],
    },
)
