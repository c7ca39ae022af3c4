"""An evaluation from its beginning to its end: networks, batches, replicas, figures."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from keras_resnet.classification.batches import fits_batches, view_batches
from keras_resnet.classification.evaluated_model import EvaluatedModel, check_classes
from keras_resnet.classification.metrics import Metrics
from keras_resnet.classification.protocols import (
    Protocol,
    fully_convolutional,
    get_protocol,
    mean_of_softmax,
    mean_over_places,
)
from keras_resnet.data import BadImages, Dataset
from keras_resnet.errors import CommandFailed, InputError
from keras_resnet.images.ops import static_shape
from keras_resnet.training.distribution import Distribution


class EvaluationFailed(CommandFailed):
    """The evaluation cannot go on by itself; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        models: the networks.
        dataset: it was about.
        split: of the dataset.
        protocol: how each image was seen.
        metrics: of the network, or of the ensemble of all.
        model_metrics: of each network of its own.
        batch_size: images a replica and step.
        replicas: of all workers.
        seconds: from the first batch to the last, with the compilation.
        bad_images: `(path, split, reason)` of those that cannot be decoded and are not counted, as far
            as this worker met them.
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
    """Tests one network, or an ensemble whose probabilities are averaged, on every image of a split.

    Args:
        models: the networks; each sees images as its own weights' preprocessing has them.
        dataset: whose labels count.
        protocol: a name of `PROTOCOLS`.
        distribution: the devices, which share the images.
        split: in TFDS' slicing syntax; None: the dataset's test split.
        batch_size: images a replica and step. Default: the protocol's. Where a protocol shows images
            at sizes of their own, it is 1 whatever is asked for.
        max_bad_images: that cannot be decoded and are left out, before it is an error.

    Raises:
        InputError: something does not fit, the weights give scores that are no numbers, or too many
            images cannot be decoded.
        EvaluationFailed: another worker is gone.
    """
    way = get_protocol(protocol)
    _check_arguments(models, dataset, batch_size, max_bad_images)
    images = dataset.split(dataset.test_split if split is None else split)
    batch_size = (batch_size or way.batch_size) if fits_batches(images, way) else 1
    with distribution.scope():
        networks = [model.network(any_size=way.fully_convolutional) for model in models]
        if way.fully_convolutional:
            networks = [fully_convolutional(network) for network in networks]

    single = [Metrics(dataset.classes) for _ in models]
    together = Metrics(dataset.classes) if len(models) > 1 else single[0]
    bad = BadImages()
    begun = time.perf_counter()
    batches = view_batches(
        images,
        way,
        [model.preprocessing for model in models],
        batch_size=batch_size,
        bad=bad,
        workers=distribution.workers,
        worker=distribution.worker,
        replicas=distribution.replicas,
    )
    steps = -(-len(images) // (batch_size * distribution.total_replicas))
    with _lost_workers_named(distribution), _bar(len(images), distribution) as bar:
        for scores, labels, losses in _scores(batches, steps, networks, way, distribution):
            _add(scores, labels, losses, models, single, together)
            bar.update(len(labels))
            if distribution.workers == 1:
                bad.check(max_bad_images)
    seconds = time.perf_counter() - begun
    # With several workers, each knows only its own bad images, and none may stop before the others.
    bad.check(max_bad_images)
    missing = len(images) - together.images
    if missing > max_bad_images or not together.images:
        raise InputError(f"{missing} of the {len(images)} images of {images.name!r} cannot be decoded")
    return Evaluation(
        tuple(models),
        dataset,
        images.name,
        way,
        together,
        tuple(single),
        batch_size,
        distribution.total_replicas,
        seconds,
        tuple(bad.rows()),
    )


def validation_arguments(recipe: dict, dataset: str, protocol: str, replicas: int) -> dict:
    """The `split` and `batch_size` of `evaluate` that repeat a run's validation to the last digit.

    Args:
        recipe: the values of the run's recipe.json.
        dataset: the dataset to evaluate on; another one than the run's has splits of its own.
        protocol: only a single crop is what training's validation sees.
        replicas: the number of devices that share a step.
    """
    batch_size = recipe.get("batch_size")
    if protocol != "single_crop" or not isinstance(batch_size, int) or batch_size % replicas:
        batch_size = None
    return {
        "split": recipe.get("val_split") if dataset == recipe["dataset"] else None,
        "batch_size": None if batch_size is None else batch_size // replicas,
    }


def _check_arguments(
    models: Sequence[EvaluatedModel], dataset: Dataset, batch_size: int | None, max_bad_images: int
) -> None:
    if not models:
        raise InputError("an evaluation needs at least one network")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"the batch size must be at least 1, not {batch_size}")
    if max_bad_images < 0:
        raise InputError(f"max_bad_images must be at least 0, not {max_bad_images}")
    for model in models:
        check_classes(model, dataset)


@contextlib.contextmanager
def _lost_workers_named(distribution: Distribution) -> Iterator[None]:
    """Turns TensorFlow's error about other workers into an `EvaluationFailed` that names them."""
    try:
        yield
    except tf.errors.OpError as error:
        lost = distribution.lost_workers(error)
        if not lost:
            raise
        raise EvaluationFailed(f"lost {' and '.join(lost)}; start all workers again") from error


def _add(scores, labels, losses, models, single: list[Metrics], together: Metrics) -> None:
    """Adds a batch of log-probabilities, (images, models, classes), and sums of losses, (models,)."""
    for index, (model, metrics) in enumerate(zip(models, single, strict=True)):
        try:
            metrics.update(scores[:, index], labels, losses[index])
        except ValueError:
            raise InputError(f"{model.weights} gives scores that are not numbers") from None
    if len(single) > 1:
        together.update(np.logaddexp.reduce(scores, axis=1) - np.log(len(single)), labels)


def _bar(images: int, distribution: Distribution) -> tqdm:
    # No bar where standard error is no terminal.
    silent = None if distribution.is_chief else True
    return tqdm(total=images, unit=" images", dynamic_ncols=True, file=sys.stderr, disable=silent)


def _scores(
    batches: tf.data.Dataset, steps: int, networks, protocol: Protocol, distribution: Distribution
) -> Iterator[tuple[np.ndarray, np.ndarray, list[float]]]:
    """Every image once: log-probabilities, float64 (images, models, classes), labels, and losses."""
    step = _step(networks, protocol, distribution)
    iterator = distribution.iterate(batches)

    def read(rows, losses):
        rows = rows.numpy().astype("float64")
        rows = rows[rows[:, -1] > 0]
        scores = rows[:, :-2].reshape(len(rows), len(networks), -1)
        with np.errstate(invalid="ignore"):  # of scores that are not numbers, which `Metrics` refuses
            scores -= np.logaddexp.reduce(scores, axis=-1, keepdims=True)
        return scores, rows[:, -2].astype("int64"), losses.numpy().tolist()

    pending = None
    for _ in range(steps):
        results = step(iterator)
        # While the device works on this step, the last one's results are counted.
        if pending is not None:
            yield read(*pending)
        pending = results
    assert pending is not None  # no split is empty
    yield read(*pending)


def _step(networks: Sequence[keras.Model], protocol: Protocol, distribution: Distribution):
    """One step of all replicas: from the iterator to scores and losses.

    The scores, float32 (images, models * classes + 2), end with an image's label and its weight. The rows
    are in the images' order, whatever the number of replicas, and every worker has all of them. The losses,
    float32 (models,), are summed as the training's evaluation sums them, to the last bit.
    """

    def on_replica(batch):
        labels, weights = batch["labels"], batch["weights"]
        scores = [
            _scores_of_views(network, protocol, views)
            for network, views in zip(networks, batch["views"], strict=True)
        ]
        losses = [tf.nn.sparse_softmax_cross_entropy_with_logits(labels, some) for some in scores]
        sums = tf.stack([tf.reduce_sum(some * weights) for some in losses])
        # One array: one collective.
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
    """Scores, float32 (batch, classes): the logits of a single view, else the mean over the views."""
    logits = [_logits(network, protocol, size) for size in views]
    if len(logits) == 1 and logits[0].shape[1] == 1:
        return logits[0][:, 0]
    return mean_of_softmax(logits)


def _logits(network: keras.Model, protocol: Protocol, views: tf.Tensor) -> tf.Tensor:
    """float32 (batch, views, classes) of float32 (batch, views, height, width, channels)."""
    batch, count = static_shape(views)[:2]
    flat = tf.reshape(views, tf.concat([[batch * count], tf.shape(views)[2:]], 0))
    logits = network(tf.ensure_shape(flat, (batch * count, *views.shape[2:])), training=False)
    if protocol.fully_convolutional:
        logits = mean_over_places(logits)
    return tf.reshape(logits, (batch, count, logits.shape[-1]))
