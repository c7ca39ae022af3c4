"""Evaluates networks on a dataset, on any number of replicas."""

import dataclasses
import time
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.classification.batches import fits_batches, view_batches
from keras_resnet.classification.evaluated_model import EvaluatedModel
from keras_resnet.classification.metrics import Metrics
from keras_resnet.classification.protocols import (
    Protocol,
    fully_convolutional,
    get_protocol,
    mean_of_softmax,
    mean_over_places,
)
from keras_resnet.data import BadImages, Dataset
from keras_resnet.data.identity import check_classes
from keras_resnet.data.sources import pipeline_errors
from keras_resnet.errors import InputError, require
from keras_resnet.progress import ProgressBar
from keras_resnet.training.distribution import Distribution


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
        metrics: of the network, or of the ensemble of all networks.
        model_metrics: of each network.
        batch_size: images per replica and step.
        replicas: of all workers.
        seconds: with compilation.
        bad_images: `(path, split, reason)` of images that this worker could not decode; they are not
            counted in the metrics.
    """

    models: tuple[EvaluatedModel, ...]
    dataset: Dataset
    split: str
    protocol: Protocol
    metrics: Metrics
    model_metrics: tuple[Metrics, ...]
    batch_size: int
    replicas: int
    seconds: float
    bad_images: tuple[tuple[str, str, str], ...] = ()


def evaluate(
    models: Sequence[EvaluatedModel],
    dataset: Dataset,
    protocol: str = "single_crop",
    *,
    distribution: Distribution,
    split: str | None = None,
    batch_size: int | None = None,
    max_bad_images: int = 0,
) -> Evaluation:
    """Evaluates one network, or an ensemble with averaged probabilities, on every image of a split.

    Args:
        models: the networks; each uses its own preprocessing.
        protocol: a name in `PROTOCOLS`.
        split: in TFDS' slicing syntax; None for the dataset's test split.
        batch_size: images per replica and step; None for the protocol's default. Always 1 if the
            protocol keeps the images' own sizes.
        max_bad_images: how many images that cannot be decoded may be skipped.

    Raises:
        InputError: the arguments do not match, scores are not numbers, too many images cannot be decoded, or
            a file of the dataset is damaged.
        LostWorker: another worker was lost.
    """
    test_protocol = get_protocol(protocol)
    if not models:
        raise InputError("an evaluation needs at least one network")
    require(batch_size is None or batch_size >= 1, "the batch size must be at least 1", batch_size)
    require(max_bad_images >= 0, "max_bad_images must be at least 0", max_bad_images)
    for model in models:
        check_classes(model.weights, model.spec, dataset)
    images = dataset.split(dataset.test_split if split is None else split)
    batch_size = (batch_size or test_protocol.batch_size) if fits_batches(images, test_protocol) else 1
    single = [Metrics(dataset.classes) for _ in models]
    together = Metrics(dataset.classes) if len(models) > 1 else single[0]
    bad = BadImages()
    global_batch = batch_size * distribution.total_replicas
    shard = distribution.shard(global_batch)
    batches = view_batches(images, test_protocol, [model.preprocessing for model in models], shard, bad)
    steps = -(-len(images) // global_batch)
    with distribution.name_lost_workers(), pipeline_errors():
        with distribution.scope():
            networks = [model.network(any_size=test_protocol.fully_convolutional) for model in models]
            if test_protocol.fully_convolutional:
                networks = [fully_convolutional(network) for network in networks]
        begun = time.perf_counter()
        with ProgressBar(len(images), "images", "evaluating", visible=distribution.is_chief) as bar:
            for scores, labels, losses in _scores(batches, steps, networks, test_protocol, distribution):
                _add(scores, labels, losses, models, single, together)
                bar.update(len(labels))
                if distribution.workers == 1:
                    bad.check(max_bad_images)
    seconds = time.perf_counter() - begun
    # Each worker knows only its own bad images, and none may stop before the others.
    bad.check(max_bad_images)
    missing = len(images) - together.images
    if missing > max_bad_images or not together.images:
        raise InputError(f"{missing} of the {len(images)} images of {images.name!r} cannot be decoded")
    return Evaluation(
        tuple(models),
        dataset,
        images.name,
        test_protocol,
        together,
        tuple(single),
        batch_size,
        distribution.total_replicas,
        seconds,
        tuple(bad.rows()),
    )


def validation_arguments(recipe: dict, dataset: str, protocol: str, replicas: int) -> dict:
    """The `split` and `batch_size` with which `evaluate` repeats a run's validation to the last digit.

    Only the run's own dataset uses the recipe's split, and only single_crop its batch size, which the
    `replicas` of all workers share.
    """
    batch_size = recipe.get("batch_size")
    if protocol != "single_crop" or not isinstance(batch_size, int) or batch_size % replicas:
        batch_size = None
    return {
        "split": recipe.get("val_split") if dataset == recipe["dataset"] else None,
        "batch_size": None if batch_size is None else batch_size // replicas,
    }


def _add(scores, labels, losses, models, single: list[Metrics], together: Metrics) -> None:
    """Adds a batch of log-probabilities (images, models, classes) and summed losses (models,)."""
    for index, (model, metrics) in enumerate(zip(models, single, strict=True)):
        try:
            metrics.update(scores[:, index], labels, losses[index])
        except ValueError:
            raise InputError(f"{model.weights} gives scores that are not numbers") from None
    if len(single) > 1:
        together.update(np.logaddexp.reduce(scores, axis=1) - np.log(len(single)), labels)


def _scores(
    batches: tf.data.Dataset, steps: int, networks, protocol: Protocol, distribution: Distribution
) -> Iterator[tuple[np.ndarray, np.ndarray, list[float]]]:
    """Yields log-probabilities, float64 (images, models, classes), labels and losses of each step."""
    step = _step(networks, protocol, distribution)
    iterator = distribution.iterate(batches)

    def read(rows, losses):
        rows = rows.numpy().astype("float64")
        rows = rows[rows[:, -1] > 0]
        scores = rows[:, :-2].reshape(len(rows), len(networks), -1)
        with np.errstate(invalid="ignore"):  # NaN and infinity, which `Metrics` rejects
            scores -= np.logaddexp.reduce(scores, axis=-1, keepdims=True)
        return scores, rows[:, -2].astype("int64"), losses.numpy().tolist()

    pending = None
    for _ in range(steps):
        results = step(iterator)
        # The previous results are processed while the device computes this step.
        if pending is not None:
            yield read(*pending)
        pending = results
    assert pending is not None  # no split is empty
    yield read(*pending)


def _step(networks: Sequence[keras.Model], protocol: Protocol, distribution: Distribution):
    """Returns a function that computes one step of all replicas: from the iterator to scores and losses.

    Each row of the scores, float32 (images, models * classes + 2), ends with the image's label and weight.
    Every worker gets all rows, in the order of the images. The losses, float32 (models,), are summed as in
    training's evaluation, to the last bit.
    """

    def on_replica(batch):
        labels, weights = batch["labels"], batch["weights"]
        scores = [
            _scores_of_views(network, protocol, views)
            for network, views in zip(networks, batch["views"], strict=True)
        ]
        losses = [tf.nn.sparse_softmax_cross_entropy_with_logits(labels, some) for some in scores]
        sums = tf.stack([tf.reduce_sum(some * weights) for some in losses])
        # One array needs only one collective operation.
        rows = tf.concat([*scores, tf.cast(labels, tf.float32)[:, None], weights[:, None]], 1)
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            rows = context.all_gather(rows, axis=0)
            sums = context.all_reduce(tf.distribute.ReduceOp.SUM, sums)
        return rows, sums

    @tf.function
    def step(iterator):
        rows, sums = distribution.run(on_replica, (next(iterator),))
        return distribution.local(rows), distribution.local(sums)

    return step


def _scores_of_views(network: keras.Model, protocol: Protocol, views: Sequence[tf.Tensor]) -> tf.Tensor:
    """Logits of a single view, or the mean over several views: float32 (batch, classes)."""
    logits = [_logits(network, protocol, size) for size in views]
    if len(logits) == 1 and logits[0].shape[1] == 1:
        return logits[0][:, 0]
    return mean_of_softmax(logits)


def _logits(network: keras.Model, protocol: Protocol, views: tf.Tensor) -> tf.Tensor:
    """Computes logits (batch, views, classes) of views (batch, views, height, width, channels)."""
    batch, count = views.shape[:2]
    # Several workers do not know their batch.
    merged = None if batch is None or count is None else batch * count
    sizes = tf.shape(views)
    flat = tf.reshape(views, tf.concat([sizes[:1] * sizes[1:2], sizes[2:]], 0))
    flat = tf.ensure_shape(flat, (merged, *views.shape[2:]))
    logits = network(flat, training=False)
    if protocol.fully_convolutional:
        logits = mean_over_places(logits)
    logits = tf.reshape(logits, (sizes[0], sizes[1], logits.shape[-1]))
    return tf.ensure_shape(logits, (batch, count, logits.shape[-1]))
