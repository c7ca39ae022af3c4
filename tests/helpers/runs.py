"""A short run, the results of runs for comparisons, and runs that are interrupted."""

import contextlib

import pytest
from helpers.zoo_networks import TINY

from keras_resnet.classification import get_recipe
from keras_resnet.run_folder import RunFolder
from keras_resnet.training.step import Trainer


def tiny_recipe():
    """Digits at 16 pixels without augmentation, 2 epochs of 5 steps."""
    return get_recipe("digits").replace(
        model_overrides=TINY,
        image_size=16,
        augmentation="none",
        batch_size=64,
        train_split="train[:320]",
        epochs=2,
    )


def history(path):
    """The rows of history.csv without speeds."""
    rows = RunFolder(path).read_history()
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


@contextlib.contextmanager
def break_off(after):
    """Interrupts the run in the block before call number `after`, counted from 0."""
    calls = iter(range(after))
    train = Trainer.train

    def counted(self, *args):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return train(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", counted)
        with pytest.raises(KeyboardInterrupt):
            yield
