"""Evaluation: the paper's test protocols, ensembles, figures, and what is written about them."""

from typing import TYPE_CHECKING

from keras_resnet import lazy

if TYPE_CHECKING:
    from keras_resnet.classification.evaluation import Evaluation, EvaluationFailed, evaluate
    from keras_resnet.classification.members import Member, find_member
    from keras_resnet.classification.metrics import Metrics
    from keras_resnet.classification.protocols import PROTOCOLS, Protocol, fully_convolutional
    from keras_resnet.classification.report import table, write_report

__all__ = [
    "PROTOCOLS",
    "Evaluation",
    "EvaluationFailed",
    "Member",
    "Metrics",
    "Protocol",
    "evaluate",
    "find_member",
    "fully_convolutional",
    "table",
    "write_report",
]

__getattr__ = lazy.attach(
    __name__,
    {
        "evaluation": ["Evaluation", "EvaluationFailed", "evaluate"],
        "members": ["Member", "find_member"],
        "metrics": ["Metrics"],
        "protocols": ["PROTOCOLS", "Protocol", "fully_convolutional"],
        "report": ["table", "write_report"],
    },
)
