"""Batch normalization's statistics, averaged over batches after training."""

import keras
import numpy as np
import pytest
from helpers.zoo_networks import load_network

from keras_resnet.classification import train
from keras_resnet.data import Transform, open_dataset, steps_per_epoch, training_batches
from keras_resnet.weights import read_spec

BATCHES = 3


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "ema"), [("one_device", 0), ("mirrored", 0.5)])
def test_statistics_are_means_over_batches_of_their_own_epoch(
    strategy, ema, tmp_path, tiny, run_options, data_dir, early_progress, capsys
):
    recipe = tiny.replace(reestimate_batches=BATCHES, ema_decay=ema, epochs=1)
    train(recipe, tmp_path / "run", run_options(strategy=strategy))
    path = tmp_path / "run" / "model.weights.h5"
    spec = read_spec(path)
    model = load_network(path)
    first = keras.Model(model.input, model.get_layer("conv1_conv").output)
    split = open_dataset("digits", data_dir).split(recipe.train_split)
    transform = Transform(spec.preprocessing, recipe.augmentation)
    replicas = 2 if strategy == "mirrored" else 1
    assert steps_per_epoch(split, recipe.batch_size) > BATCHES
    # The first epoch that was not trained on.
    batches = training_batches(
        split, transform, global_batch=recipe.batch_size, seed=0, epoch=1, replicas=replicas
    )
    outputs = [first(batch["images"]).numpy() for batch in batches.take(BATCHES * replicas)]
    bn = model.get_layer("conv1_bn")
    mean = np.mean([output.mean((0, 1, 2)) for output in outputs], 0)
    variance = np.mean([output.var((0, 1, 2)) for output in outputs], 0)
    np.testing.assert_allclose(bn.moving_mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bn.moving_variance, variance, rtol=1e-4)
    printed = capsys.readouterr().err
    assert "averaged over 3 batches: val loss" in printed
    assert "statistics of batch normalization: 1 of 3 batches, " in printed
    assert "evaluating: 1 of 6 batches, " in printed
    assert "training: 64 of 320 images, " in printed
    if strategy == "one_device":
        # Only the statistics differ.
        train(recipe.replace(reestimate_batches=0), tmp_path / "without", run_options())
        without = load_network(tmp_path / "without" / "model.weights.h5")
        others = {variable.path: variable.numpy() for variable in without.variables}
        changed = {v.path for v in model.variables if not np.array_equal(v, others[v.path])}
        assert changed == {name for name in others if "moving" in name}
