"""Opens and saves weights of detectors: published weights by name, weight files by path."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import keras

from keras_resnet.detection.config import DetectorConfig
from keras_resnet.detection.registry import (
    PretrainedDetector,
    coco_class_names,
    detector_entries,
    get_detector_entry,
    list_detector_weights,
)
from keras_resnet.detection.spec import DetectorSpec
from keras_resnet.detection.torch_files import (
    EPSILON,
    LOAD_CLASSIFIER,
    assign_torch_tensors,
    check_kind,
    count_classes,
    with_new_names,
)
from keras_resnet.errors import InputError
from keras_resnet.weights.conversion import Tensors
from keras_resnet.weights.download import fetch
from keras_resnet.weights.hdf5 import check_is_file, open_hdf5, read_text, refuse_damage
from keras_resnet.weights.native import DETECTOR, assign_layers, described, save_described
from keras_resnet.weights.torch_files import read_torch_file
from keras_resnet.weights.weight_file import HDF5, SUFFIXES

# The layers whose shapes depend on the number of classes.
_PREDICTORS = ("roi_logits", "roi_deltas", "classification_logits")


class Loadable(Protocol):
    """The attributes of a `Detector` that loading and saving need."""

    @property
    def name(self) -> str:
        """A name of `list_detectors()`."""
        ...

    @property
    def config(self) -> DetectorConfig:
        """The detector's config."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names, in the order of the labels."""
        ...

    @property
    def model(self) -> keras.Model:
        """The functional model with all weights."""
        ...


class DetectorWeights:
    """Weights of a detector, made by `open_detector_weights`.

    Attributes:
        path: the weight file.
        entry: the row of the table of published weights; None for other files.
        described: the description in a file of this package; None for other files.
    """

    def __init__(self, path: Path, entry: PretrainedDetector | None = None):
        self.path, self.entry = check_is_file(path), entry
        self.described: DetectorSpec | None = None
        self._tensors: Tensors | None = None
        self._is_native = path.suffix in HDF5
        if self._is_native:
            self.described = read_detector_spec(path)
        elif path.suffix not in SUFFIXES:
            raise InputError(f"{path} is not a .safetensors, .pth, .pt or .h5 file")

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The described names, or COCO's for a torchvision file with 90 classes; otherwise None."""
        if self.described is not None:
            return self.described.class_names
        names = coco_class_names()
        if self._is_native or self.count_classes() != len(names):
            return None
        return names

    def count_classes(self) -> int | None:
        """Returns the number of classes, without the background; None if it is not known."""
        if self.described is not None:
            return self.described.config.classes
        return None if self._is_native else count_classes(self._read())

    def load(self, detector: Loadable, *, transfer: bool = False) -> None:
        """Loads the weights into a detector; see `load_detector_weights`."""
        kept: Collection[str] = ()
        names = detector.class_names if self.described is None else self.described.class_names
        others = self.count_classes() not in (None, detector.config.classes)
        if transfer and (others or names != detector.class_names):
            kept = [layer.name for layer in detector.model.layers if layer.name in _PREDICTORS]
        if self._is_native:
            if self.described is not None:
                self.described.check_loadable(self.path, detector.name, detector.config, bool(kept))
            with refuse_damage(self.path), open_hdf5(self.path) as file:
                return assign_layers(detector.model, file, self.path, kept=kept)
        tensors, self._tensors = self._read(), None
        check_kind(tensors, detector.config, self.path, detector.name)
        entries = [self.entry] if self.entry else detector_entries(detector.name)
        epsilon = entries[0].epsilon if entries else EPSILON
        assign_torch_tensors(detector.model, detector.config, tensors, self.path, epsilon=epsilon, kept=kept)

    def _read(self) -> Tensors:
        if self._tensors is None:
            self._tensors = with_new_names(read_torch_file(self.path), self.path)
        return self._tensors


def open_detector_weights(weights: str | os.PathLike, detector: str) -> DetectorWeights:
    """Opens weights of a detector; published weights are downloaded unless they are in the cache.

    Args:
        weights: a name of `list_detector_weights(detector)`, such as "coco", or the path of a file.
        detector: a name of `list_detectors()`.

    Raises:
        InputError: there are no such weights, or they cannot be downloaded or opened.
    """
    if not isinstance(weights, str | os.PathLike):
        raise InputError(f"weights must be a name of list_detector_weights() or a path; got {weights!r}")
    is_path = isinstance(weights, os.PathLike) or os.path.isfile(weights) or Path(weights).suffix in SUFFIXES
    is_name = isinstance(weights, str) and weights in list_detector_weights()
    if is_path or (os.sep in os.fspath(weights) and not is_name):
        return DetectorWeights(Path(weights))
    entry = get_detector_entry(os.fspath(weights), detector)
    return DetectorWeights(fetch(entry.url, entry.digest), entry)


def load_detector_weights(
    detector: Loadable, weights: str | os.PathLike | DetectorWeights, *, transfer: bool = False
) -> None:
    """Loads weights into a detector; if they do not fit, the detector is unchanged.

    If batch normalization is frozen in a torchvision file, its gammas are scaled to compensate for the
    different epsilon with which the detector's published weights were trained (0 for the older ones).

    Args:
        weights: opened weights, a name of `list_detector_weights(detector.name)`, or the path of a file of
            this package (.weights.h5) or of torchvision (.pth, .pt, .safetensors; tensor names from before
            and since version 0.13).
        transfer: allows another number of classes; the detector's last layers keep their weights then.

    Raises:
        InputError: there are no such weights, the file is damaged, or they do not fit the detector.
    """
    if not isinstance(weights, DetectorWeights):
        weights = open_detector_weights(weights, detector.name)
    weights.load(detector, transfer=transfer)


def save_detector_weights(detector: Loadable, path: str | os.PathLike) -> Path:
    """Saves the weights and a `DetectorSpec` atomically as .weights.h5; see `save_weights`.

    Raises:
        OSError: the file cannot be written.
    """
    spec = DetectorSpec(detector.name, detector.config, detector.class_names)
    return save_described(detector.model, path, {DETECTOR: spec.to_json()})


def read_detector_spec(path: str | os.PathLike) -> DetectorSpec | None:
    """Returns the description in a detector's weight file; None if the file has none.

    Raises:
        InputError: the file is damaged, or is the weight file of a classifier.
    """
    with refuse_damage(path), open_hdf5(path) as file:
        text = read_text(file, DETECTOR)
        if text is not None:
            return DetectorSpec.from_json(text, file.id.get_filesize())
        if classifier := described(file):
            raise InputError(
                f"{path} holds a classifier, {classifier.model}, not a detector; {LOAD_CLASSIFIER}"
            )
    return None
