"""Histories that nobody trained, in the folders where trained ones would be."""

from experiments.runs import Outcome, Run
from keras_resnet.run_folder import RunFolder

HISTORY = (
    "epoch",
    "step",
    "learning_rate",
    "train_loss",
    "train_top1",
    "val_loss",
    "val_top1",
    "images_per_second",
)


def history(train_errors, val_errors=None, batch_size=64):
    """Rows as history.csv has them, from errors in % by epoch."""
    rows = []
    for index, error in enumerate(train_errors):
        val = error if val_errors is None else val_errors[index]
        values = (index + 1, 10 * (index + 1), 0.1, error / 50, 1 - error / 100, val / 50, 1 - val / 100)
        rows.append(dict(zip(HISTORY, (*values, 100.0 * batch_size), strict=True)))
    return tuple(rows)


def outcome(run: Run, folder, train_errors, val_errors=None, failure=None) -> Outcome:
    """What a run would have left, had it learned like this."""
    return Outcome(run, RunFolder(folder / run.name), history(train_errors, val_errors), failure)
