"""The detection task of the training loop: Faster R-CNN by approximate joint training."""

import dataclasses
import importlib.util
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.data import BadImages
from keras_resnet.detection.config import DetectorConfig, get_detector_config
from keras_resnet.detection.data.annotations import DetectionDataset, DetectionSplit, concatenate
from keras_resnet.detection.data.augmentation import DetectionAugmentation
from keras_resnet.detection.data.batches import DetectionBatches
from keras_resnet.detection.data.sources import open_detection_dataset
from keras_resnet.detection.detections import Detections
from keras_resnet.detection.detector import Detector, Outputs, build_detector, freeze_detector
from keras_resnet.detection.losses import anchor_targets, region_targets, roi_losses, rpn_losses
from keras_resnet.detection.metrics import coco_statistics, voc_average_precision
from keras_resnet.detection.proposals import propose
from keras_resnet.detection.recipe import DetectionRecipe
from keras_resnet.detection.sizes import padded_shape, rescale_boxes
from keras_resnet.detection.statistics import reestimate_statistics
from keras_resnet.detection.weight_files import open_detector_weights
from keras_resnet.errors import InputError
from keras_resnet.images.ops import static_shape
from keras_resnet.images.preprocessing import Normalization
from keras_resnet.progress import ProgressBar
from keras_resnet.training import loop
from keras_resnet.training.distribution import Distribution
from keras_resnet.training.options import RunOptions
from keras_resnet.training.task import Batch, Call, Curve, Task, call_in_training
from keras_resnet.training.trackers import Tracker

_LOSSES = ("rpn_classification", "rpn_box", "roi_classification", "roi_box")


def train(
    recipe: DetectionRecipe,
    folder: str | os.PathLike,
    options: RunOptions | None = None,
    observer: loop.Observer | None = None,
    trackers: Sequence[Tracker] = (),
) -> dict:
    """Trains a detection recipe; see `keras_resnet.training.train`."""
    return loop.train(DetectionTask(recipe), folder, options, observer, trackers)


class DetectionTask(Task):
    """Object detection with Faster R-CNN; the methods are documented in `Task`.

    Approximate joint training: every step minimizes the sum of all four losses, and no gradient is propagated
    through the coordinates of the proposals.
    """

    train_metrics = ("loss", *_LOSSES)
    val_metrics = ("map", "map50", "voc_map")
    curves = (
        Curve(("map50", "map", "voc_map"), "mean average precision (%)", lambda value: 100 * value),
        Curve(("loss", *_LOSSES), "loss", log=True),
    )

    def __init__(self, recipe: DetectionRecipe):
        self.recipe: DetectionRecipe = recipe

    def check_options(self, options: RunOptions) -> None:
        if options.jit:
            raise InputError("detectors cannot be trained with --jit")

    def open(self, data_dir: str | None) -> None:
        recipe = self.recipe
        if importlib.util.find_spec("pycocotools") is None:
            raise InputError("the mAP of detectors needs the package pycocotools: pip install pycocotools")
        dataset = open_detection_dataset(recipe.dataset, data_dir, recipe.skip_faulty)
        self._config = _config(recipe, dataset)
        self._class_names = dataset.class_names
        validation = recipe.val_split or validation_split(dataset)
        train_split, self.data_identity = dataset.split(recipe.train_split), dataset.identity
        if recipe.also_train is not None:
            more = open_detection_dataset(recipe.also_train, data_dir, recipe.skip_faulty)
            train_split, self.data_identity = _with_more(train_split, dataset, more)
        self._train = DetectionBatches(train_split, self._config, recipe.batch_size)
        self._val = DetectionBatches(dataset.split(validation), self._config, recipe.batch_size)
        if not any((~objects.crowd & ~objects.difficult).any() for objects in self._val.split.objects):
            raise InputError(f"the split {validation!r} of {dataset.name} has no objects to evaluate on")
        self.epoch_steps, self.evaluation_steps = self._train.epoch_steps, self._val.evaluation_steps
        skipped = self._val.split.left_out
        self.notices = (_summary(train_split), *([f"{validation}: {skipped}"] if skipped else []))

    def build(self, pretrained: bool) -> keras.Model:
        recipe, names = self.recipe, self._class_names
        if pretrained and recipe.backbone_weights is not None:
            options = {"backbone_weights": recipe.backbone_weights, "freeze": None, **_overrides(recipe)}
            self._detector = build_detector(recipe.model, **options, classes=names)
        elif pretrained and recipe.weights is not None:
            file = open_detector_weights(recipe.weights, recipe.model)
            config = self._config
            if file.described is not None and "normalization" not in recipe.model_overrides:
                config = config.replace(normalization=file.described.config.normalization)
            self._detector = Detector(recipe.model, config, names)
            self._detector.load_weights(file, transfer=True)
        else:
            self._detector = Detector(recipe.model, self._config, names)
        if recipe.weights is not None or recipe.backbone_weights is not None:
            freeze_detector(self._detector, recipe.freeze)
        return self._detector.model

    def prepare(self, distribution: Distribution, held: dict[str, np.ndarray] | None, bad: BadImages) -> None:
        if normalization := Normalization.from_arrays(held or {}):
            self._detector.config = self._detector.config.replace(normalization=normalization)
        config = self._detector.config
        self._train = dataclasses.replace(self._train, config=config)
        self._val = dataclasses.replace(self._val, config=config)
        mean = np.broadcast_to(np.clip(config.normalization.mean, 0, 255), 3)
        low, high = self.recipe.scale_jitter
        self._policy = DetectionAugmentation(self.recipe.flip, (low, high), fill=mean.tolist())
        if held is None and self.recipe.statistics_batches:
            shard = distribution.shard(self.recipe.batch_size)
            count = min(self.recipe.statistics_batches, self.epoch_steps) * shard.replicas
            batches = self._train.training(shard, self._policy, seed=0, epoch=0, bad=bad).take(count)
            about = "statistics of batch normalization"
            progress = ProgressBar(count, "batches", about, visible=distribution.is_chief)
            images = _whole_images(progress.track(batches), config.size_multiple)
            reestimate_statistics(self._detector, images, distribution.gather)

    def parts(self, model: keras.Model) -> list[keras.Model]:
        del model
        return [self._detector.shared, self._detector.head_features]

    def arrays(self) -> dict[str, np.ndarray]:
        return self._detector.config.normalization.to_arrays()

    def training_batches(
        self,
        distribution: Distribution,
        *,
        seed: int,
        epoch: int,
        epochs: float,
        first_step: int,
        bad: BadImages,
    ) -> tf.data.Dataset:
        del epochs
        place = {"seed": seed, "epoch": epoch, "first_step": first_step}
        shard = distribution.shard(self.recipe.batch_size)
        return self._train.training(shard, self._policy, **place, bad=bad)

    def evaluation_batches(self, distribution: Distribution, bad: BadImages) -> tf.data.Dataset:
        return self._val.evaluation(distribution.shard(self.recipe.batch_size), bad)

    def training_sums(
        self,
        model: keras.Model,
        call: Call,
        batch: Batch,
        key: tuple[int, tf.Tensor, tf.Tensor],
    ) -> list[tf.Tensor]:
        del model  # its `parts` are applied instead
        anchors = self._anchors(self._train.canvas, batch)
        seeds = [_seeds(key, batch, purpose) for purpose in (0, 1)]
        losses = joint_losses(self._detector, batch, anchors, seeds, call)
        sums = [tf.reduce_sum(loss * batch["weights"]) for loss in losses]
        return [tf.add_n(sums), *sums, tf.reduce_sum(batch["weights"])]

    def evaluation_sums(self, model: keras.Model, batch: Batch) -> tuple[list[tf.Tensor], dict]:
        del model
        anchors = self._anchors(self._val.canvas, batch)
        found, finite = self._detector.checked_detections(batch["images"], anchors, batch["sizes"])
        collected = {
            "boxes": found.boxes,
            "scores": tf.where(found.valid, found.scores, -1.0),
            "labels": found.labels,
            "sizes": batch["sizes"],
            "indices": tf.where(batch["weights"] > 0, batch["indices"], -1),
        }
        not_finite = tf.where(finite, 0.0, batch["weights"])
        return [tf.reduce_sum(batch["weights"]), tf.reduce_sum(not_finite)], collected

    def evaluation_metrics(self, sums: np.ndarray, collected: dict[str, np.ndarray]) -> dict[str, float]:
        split = self._val.split
        images, not_finite = sums.tolist()
        if not images:
            raise InputError(f"not one image of the split {split.name!r} can be decoded")
        if not_finite:
            raise loop.TrainingFailed(
                f"the detector's outputs are not finite for {not_finite:.0f} of {images:.0f} images of"
                f" {split.name!r}: training has diverged; start it again with a lower learning rate"
            )
        found: list[Detections | None] = [None] * len(split)
        for row, index in enumerate(collected["indices"].tolist()):
            if index >= 0:
                kept = collected["scores"][row] >= 0
                boxes, scores, labels = (collected[name][row][kept] for name in ("boxes", "scores", "labels"))
                boxes = rescale_boxes(boxes, collected["sizes"][row], split.sizes[index])
                found[index] = Detections(boxes, scores, labels)
        figures = coco_statistics(split, found).figures
        voc = float(np.nanmean(voc_average_precision(split, found)))
        return {"map": figures["AP"], "map50": figures["AP50"], "voc_map": voc}

    def error(self, metrics: dict[str, float]) -> float:
        return 1 - metrics["map"]

    def describe(self, metrics: dict[str, float]) -> str:
        if "map" in metrics:
            return f"mAP {metrics['map']:.3f}, at IoU .5 {metrics['map50']:.3f}"
        parts = " + ".join(f"{metrics[name]:.3f}" for name in _LOSSES)
        return f"loss {metrics['loss']:.3f} = {parts}"

    def save(self, model: keras.Model, path: Path) -> None:
        del model
        self._detector.save_weights(path)

    def _anchors(self, canvas: tuple[int, int], batch: Batch) -> list[tf.Tensor]:
        """The anchors of each level for a batch on the canvas or, if portrait, on the rotated canvas."""
        sides = [self._detector.anchors(*sides) for sides in (canvas, canvas[::-1])]
        shape = tf.shape(batch["images"])
        is_turned = shape[1] > shape[2]
        return [tf.where(is_turned, turned, upright) for upright, turned in zip(*sides, strict=True)]


def joint_losses(
    detector: Detector,
    batch: Batch,
    anchors: Sequence[tf.Tensor],
    seeds: Sequence[tf.Tensor],
    call: Call = call_in_training,
) -> list[tf.Tensor]:
    """Computes the four losses of each image in training mode.

    Args:
        batch: an element of `DetectionBatches.training`.
        anchors: the result of `Detector.anchors`.
        seeds: the seeds for sampling anchors and for sampling regions, both int64 (batch, 2).
        call: applies `detector.shared` and `detector.head_features`.

    Returns:
        The classification and box losses of the region proposal network and of the box head, each float32
        (batch,).
    """
    config = detector.config
    outputs = Outputs(**call(detector.shared, batch["images"]))
    logits, deltas = _joined(outputs)
    targets = anchor_targets(tf.concat(anchors, 0), batch, seeds[0], config)
    of_anchors = rpn_losses(logits, deltas, targets, config)
    proposals = propose(outputs.logits, outputs.deltas, anchors, batch["sizes"], config.in_training)
    regions, targets = region_targets(proposals, batch, seeds[1], config)
    boxes = detector.with_context(regions, batch["sizes"])
    features = call(detector.head_features, detector.pool(outputs, boxes), input_gradient=True)
    features = tf.reshape(features, [-1, static_shape(boxes)[1], features.shape[-1]])
    logits, deltas = detector.predict(features, training=True)
    return [*of_anchors, *roi_losses(logits, deltas, targets, config)]


def validation_split(dataset: DetectionDataset) -> str:
    """Returns the test split, otherwise the first that is not for training."""
    names = [name for name in dataset.split_names if not name.startswith("train")]
    if not names:
        raise InputError(f"{dataset.name} has no split to evaluate on; set val_split")
    return min(names, key=lambda name: not name.startswith("test"))


def _summary(split: DetectionSplit) -> str:
    """One line about the annotations of the training images."""
    trained = [int((~objects.crowd & ~objects.difficult).sum()) for objects in split.objects]
    others = {
        "difficult objects (left out)": sum(int(objects.difficult.sum()) for objects in split.objects),
        "crowd regions (ignored)": sum(int((o.crowd & ~o.difficult).sum()) for o in split.objects),
        "images without objects (background)": trained.count(0),
    }
    line = f"{split.name}: {len(split):,} images, {sum(trained):,} objects"
    line += "".join(f", {count:,} {what}" for what, count in others.items() if count)
    return f"{line}; {split.left_out}" if split.left_out else line


def _whole_images(batches: Iterable[Batch], multiple: int) -> Iterator[tf.Tensor]:
    """The decodable images of batches one by one, (1, height, width, 3), with the padding of `detect`."""
    for batch in batches:
        sizes, weights = (np.asarray(batch[name]) for name in ("sizes", "weights"))
        for place in np.flatnonzero(weights > 0).tolist():
            height, width = padded_shape(int(sizes[place, 0]), int(sizes[place, 1]), multiple)
            yield tf.slice(batch["images"], [place, 0, 0, 0], [1, height, width, -1])


def _overrides(recipe: DetectionRecipe) -> dict[str, Any]:
    """The fields of `DetectorConfig` that the recipe overrides."""
    overrides = {key: value for key, value in recipe.model_overrides.items() if key != "classes"}
    if "network" in overrides:
        if not isinstance(overrides["network"], dict):
            raise InputError(
                f"model.network takes fields of the backbone's config; got {overrides['network']!r}"
            )
        overrides["network"] = get_detector_config(recipe.model).network.replace(**overrides["network"])
    if "normalization" in overrides:
        overrides["normalization"] = Normalization(**overrides["normalization"])
    return overrides


def _config(recipe: DetectionRecipe, dataset: DetectionDataset) -> DetectorConfig:
    """The detector's config; raises `InputError` if it cannot be trained on the dataset."""
    config = get_detector_config(recipe.model, **_overrides(recipe), classes=dataset.classes)
    classes = recipe.model_overrides.get("classes", dataset.classes)
    if classes != dataset.classes:
        raise InputError(f"classes is {classes}, but {dataset.name} has {dataset.classes}")
    if config.style == "retinanet":
        raise InputError("RetinaNet cannot be trained yet; set a faster_rcnn detector")
    return config


def _with_more(
    split: DetectionSplit, dataset: DetectionDataset, more: DetectionDataset
) -> tuple[DetectionSplit, dict]:
    """The training images of two datasets, and the identity of both datasets."""
    if more.class_names != dataset.class_names:
        raise InputError(f"{more.name} has other classes than {dataset.name}")
    joined = concatenate(f"{split.name} of {dataset.name} and {more.name}", [split, more.split(split.name)])
    ours, theirs = dataset.identity, more.identity
    sizes = {f"{more.name} {name}": size for name, size in theirs["split_sizes"].items()}
    files = f"{ours['files']}, {theirs['files']}"
    return joined, {**ours, "split_sizes": {**ours["split_sizes"], **sizes}, "files": files}


def _joined(outputs: Outputs) -> tuple[tf.Tensor, tf.Tensor]:
    """The logits, (batch, anchors), and deltas, (batch, anchors, 4), of all levels."""
    count = tf.shape(outputs.logits[0])[0]
    logits = tf.concat([tf.reshape(each, [count, -1]) for each in outputs.logits], 1)
    return logits, tf.concat([tf.reshape(each, [count, -1, 4]) for each in outputs.deltas], 1)


def _seeds(key: tuple[int, tf.Tensor, tf.Tensor], batch: Batch, purpose: int) -> tf.Tensor:
    """The seeds of each image, int64 (batch, 2), which depend only on seed, step, image and purpose."""
    seed, step, _ = key
    first = tf.constant(seed << 31, tf.int64) + tf.cast(step, tf.int64)
    second = tf.cast(batch["indices"], tf.int64) * 2 + purpose
    return tf.stack([tf.fill(tf.shape(second), first), second], 1)
