"""Evaluation: the paper's test protocols, ensembles, figures, and what is written about them."""

from keras_resnet.evaluation.members import Member, find_member
from keras_resnet.evaluation.metrics import Metrics
from keras_resnet.evaluation.protocols import PROTOCOLS, Protocol, fully_convolutional
from keras_resnet.evaluation.reports import table, write_report
from keras_resnet.evaluation.runner import Evaluation, EvaluationFailed, evaluate

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
