"""The networks of finished runs, and the images that they are measured on."""

import keras
import numpy as np
import tensorflow as tf

from experiments.runs import CLASSES, Outcome
from keras_resnet.classification.recipe import ClassificationRecipe
from keras_resnet.data import Dataset, evaluation_batches
from keras_resnet.weights import ModelSpec, open_weights


def load_network(outcome: Outcome) -> keras.Model:
    """The trained network, which outputs logits."""
    with open_weights(outcome.folder.weights) as file:
        return file.build()


def initial_network(recipe: ClassificationRecipe, seed: int) -> keras.Model:
    """The network with the weights that a run starts from; its recipe has no pretrained weights."""
    keras.utils.set_random_seed(seed)
    shape = (recipe.image_size, recipe.image_size, recipe.channels)
    return ModelSpec.default(recipe.model, CLASSES, recipe.model_overrides, shape).build()


def network_images(
    outcome: Outcome, dataset: Dataset, split: str, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a split, preprocessed as for evaluating the outcome's network, and their classes.

    Returns:
        At most `count` images, float32 (images, height, width, channels), and classes, int32 (images,).
    """
    with open_weights(outcome.folder.weights) as file:
        preprocessing = file.spec.preprocessing
    batch = next(iter(evaluation_batches(dataset.split(split), preprocessing, global_batch=count)))
    real = batch["weights"].numpy() > 0
    return batch["images"].numpy()[real], batch["labels"].numpy()[real]


def training_loss(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> tf.Tensor:
    """The mean cross-entropy of a network that outputs logits, with the batch's statistics, as in training.

    The moving statistics are not changed.
    """
    kept = [(variable, variable.numpy()) for variable in model.non_trainable_variables]
    logits = model(images, training=True)
    for variable, value in kept:
        variable.assign(value)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
