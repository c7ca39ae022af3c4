"""A task that the library does not have: the mean brightness of an image, by regression."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.runs import history

from keras_resnet import build_model, data
from keras_resnet.images.preprocessing import Normalization, Preprocessing
from keras_resnet.run_folder import RunFolder
from keras_resnet.training import Recipe, RunOptions, Task, checkpoints, train

PIXELS = Preprocessing(8, None, "bilinear", Normalization((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)))


class Brightness(Task):
    train_metrics = ("loss",)
    val_metrics = ("loss", "median_error")

    def __init__(self, recipe):
        self.recipe = recipe

    def open(self, data_dir):
        dataset = data.open_dataset(self.recipe.dataset, data_dir)
        self.splits = dataset.split(self.recipe.train_split), dataset.split(self.recipe.val_split)
        self.epoch_steps = data.steps_per_epoch(self.splits[0], self.recipe.batch_size)
        self.evaluation_steps = -(-len(self.splits[1]) // self.recipe.batch_size)

    def build(self, pretrained):
        config = {"input_shape": (8, 8, 3), "classes": 1, "classifier_activation": None}
        return build_model(self.recipe.model, **config, **self.recipe.model_overrides)

    def prepare(self, distribution, held, bad):
        pass

    def _shard(self, distribution, bad):
        shard = {name: getattr(distribution, name) for name in ("workers", "worker", "replicas")}
        return {"global_batch": self.recipe.batch_size, "bad": bad, **shard}

    def training_batches(self, distribution, *, seed, epoch, epochs, first_step, bad):
        place = {"seed": seed, "epoch": epoch, "first_step": first_step}
        transform = data.Transform(PIXELS, "pad_crop_flip")
        return data.training_batches(self.splits[0], transform, **place, **self._shard(distribution, bad))

    def evaluation_batches(self, distribution, bad):
        return data.evaluation_batches(self.splits[1], PIXELS, **self._shard(distribution, bad))

    def _errors(self, outputs, batch):
        return tf.abs(outputs[:, 0] - tf.reduce_mean(batch["images"], (1, 2, 3)))

    def training_sums(self, model, call, batch, key):
        losses = self._errors(call(model, batch["images"]), batch) ** 2
        return tf.reduce_sum(losses * batch["weights"]), tf.reduce_sum(batch["weights"])

    def evaluation_sums(self, model, batch):
        errors = self._errors(model(batch["images"], training=False), batch)
        return (tf.reduce_sum(errors**2 * batch["weights"]),), {"errors": errors, "real": batch["weights"]}

    def evaluation_metrics(self, sums, collected):
        errors = collected["errors"][collected["real"] > 0]
        return {"loss": float(sums[0]) / len(errors), "median_error": float(np.median(errors))}

    def save(self, model, path):
        model.save_weights(path)


def result(path):
    """The weights file, the arrays of the last checkpoint, and the history."""
    folder = RunFolder(path)
    arrays = checkpoints.load(checkpoints.list_checkpoints(folder.checkpoints)[-1]).arrays
    return folder.weights.read_bytes(), {name: a.tobytes() for name, a in arrays.items()}, history(path)


@pytest.mark.parametrize("strategy", ["one_device", pytest.param("mirrored", marks=pytest.mark.slow)])
def test_a_resumed_run_of_a_new_task_ends_with_the_same_bytes(tmp_path, data_dir, strategy, break_off):
    network = {"stage_depths": (1,), "stage_filters": (4,)}
    recipe = Recipe("cifar_resnet20", "digits", network, "train[:48]", "test[:20]", batch_size=16, epochs=4)
    recipe = recipe.replace(learning_rate=0.01, schedule="plateau", ema_decay=0.5)
    options = RunOptions(strategy=strategy, data_dir=data_dir, checkpoint_every=7)
    train(Brightness(recipe), tmp_path / "whole", options)
    with break_off(8):
        train(Brightness(recipe), tmp_path / "broken", options)
    steps = []
    train(Brightness(recipe), tmp_path / "broken", options, lambda trainer, first, rows: steps.append(first))
    assert steps == [7, 8, 9, 10, 11]
    weights, arrays, rows = result(tmp_path / "whole")
    assert result(tmp_path / "broken") == (weights, arrays, rows)
    assert {name.split("/")[0] for name in arrays} >= {"weights", "velocity", "average"}
    columns = "epoch step learning_rate train_loss val_loss val_median_error"
    assert list(rows[0]) == columns.split()
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"]) / 2
