"""The arguments of a detector's export, checked before anything is written."""

import collections
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.data.identity import data_changes
from keras_resnet.detection.data.annotations import DetectionSplit
from keras_resnet.detection.data.sources import open_detection_dataset
from keras_resnet.detection.detector import Detector, build_detector, load_detector
from keras_resnet.detection.export.onnx import check_opset
from keras_resnet.detection.export.tflite import PRECISIONS
from keras_resnet.detection.task import validation_split
from keras_resnet.detection.weight_files import DetectorWeights, open_detector_weights
from keras_resnet.errors import InputError, require
from keras_resnet.export.artifacts import (
    ARTIFACTS,
    FORMATS,
    IO_DTYPES,
    OPSET,
    check_choice,
    check_formats,
    check_options_apply,
)
from keras_resnet.export.images import photos
from keras_resnet.export.request import CALIBRATION_IMAGES, export_command
from keras_resnet.files import local_path
from keras_resnet.run_folder import RunFolder

IMAGES = 200
"""Default number of images to compare on."""

_PRECISIONS = {"saved_model": ("float32",), "onnx": ("float32",), "tflite": PRECISIONS}


@dataclasses.dataclass(frozen=True)
class DetectionImages:
    """Images to compare on, and to calibrate with.

    Attributes:
        images: a split, or uint8 images (height, width, 3).
        source: description of the images, for the report.
        calibration: returns other images, for int8.
    """

    images: DetectionSplit | Sequence[np.ndarray]
    source: str
    calibration: Callable[[], list[np.ndarray]]

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> np.ndarray:
        images = self.images
        return images.read_image(index) if isinstance(images, DetectionSplit) else images[index]

    @property
    def size(self) -> tuple[int, int]:
        """The most frequent height and width."""
        images = self.images
        if isinstance(images, DetectionSplit):
            sizes = [(int(height), int(width)) for height, width in images.sizes]
        else:
            sizes = [image.shape[:2] for image in images]
        ((height, width), _), *_ = collections.Counter(sizes).most_common(1)
        return height, width


@dataclasses.dataclass(frozen=True)
class DetectorExportRequest:
    """The arguments of `python -m keras_resnet export` for a detector.

    Attributes:
        workdir: folder of a run with `model.weights.h5` and `recipe.json`, instead of `model` and `weights`;
            also in object storage.
        weights: a weight file of this package or of torchvision, or the name of published weights.
        dataset: dataset to verify on. Default: the recipe's; without a run, scikit-learn's two photos.
        output_dir: where to write. Default: `WORKDIR/export` or `exported/MODEL`.
        images: number of images to verify on, the first of the evaluation split.
        image_size: height and width of the images that TFLite files take. Default: the most frequent size
            of the images to verify on.
        calibration_images: number of images for int8, from the dataset's training split.
        formats: names from `FORMATS`, as a list or separated by commas.
        precision: "float32"; for TFLite also "float16" and "int8"; as a list or separated by commas.
        io_dtype: dtype of the pixels that TFLite and ONNX files take: "float32" or "uint8".
        opset: ONNX operator set version.
        artifacts: keys of `ARTIFACTS`, from `formats` and `precision`.
    """

    workdir: str | os.PathLike | None = None
    model: str | None = None
    weights: str | Path | None = None
    dataset: str | None = None
    data_dir: str | None = None
    output_dir: str | Path | None = None
    images: int = IMAGES
    image_size: tuple[int, int] | None = None
    calibration_images: int = CALIBRATION_IMAGES
    formats: str | Iterable[str] = FORMATS
    precision: str | Iterable[str] = "float32"
    io_dtype: str = "float32"
    opset: int = OPSET
    artifacts: tuple[str, ...] = dataclasses.field(init=False, default=())

    def __post_init__(self) -> None:
        kinds = [kind for kind in ARTIFACTS.values() if kind.precision in _PRECISIONS.get(kind.format, ())]
        object.__setattr__(self, "artifacts", check_formats(self.formats, self.precision, kinds))
        local_path(self.output_dir or "")
        check_choice("io_dtype", self.io_dtype, IO_DTYPES)
        for name in ("images", "calibration_images"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name))
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        options = ("io_dtype", "opset", "image_size", "calibration_images")
        check_options_apply(
            [name for name in options if getattr(self, name) != defaults[name]], self.artifacts
        )
        check_opset(self.opset)

    @property
    def command(self) -> str:
        """The command line that repeats this request."""
        sides = None if self.image_size is None else ",".join(map(str, self.image_size))
        return export_command(self, {"image_size": sides})

    def source(self, folder: RunFolder | None = None) -> "DetectorSource":
        """Opens the run or the weights, and the images.

        Args:
            folder: the opened `workdir`. Default: it is opened as a local folder.

        Raises:
            InputError: they are missing or damaged, or contradict the request or each other.
        """
        if self.workdir is not None:
            return self._run(folder or RunFolder(self.workdir))
        if self.model is None or self.weights is None:
            raise InputError("an export needs a workdir, or a model and weights")
        file = open_detector_weights(self.weights, self.model)
        detector = build_detector(self.model, weights=self.weights, freeze=None)
        output_dir = Path(self.output_dir or Path("exported") / self.model)
        origin = None if file.path.name.endswith(".h5") else file
        return DetectorSource(detector, output_dir, self._images(self.dataset), origin=origin)

    def _run(self, folder: RunFolder) -> "DetectorSource":
        recipe = folder.read_recipe()
        if not folder.weights.is_file():
            name = folder.weights.name
            raise InputError(f"{folder.path} holds no {name}; train first, or give another --workdir")
        trained_on = recipe.pop("data", {})
        detector = load_detector(folder.weights)
        if recipe["model"] != detector.name:
            raise InputError(
                f"{folder.path}: the recipe is for {recipe['model']}, but the weights are for {detector.name}"
            )
        # Without --dataset, the data must be those of the training.
        unchanged = trained_on if self.dataset is None else None
        images = self._images(self.dataset or recipe["dataset"], recipe, unchanged)
        return DetectorSource(detector, Path(self.output_dir or folder.path / "export"), images, recipe)

    def _images(
        self, dataset: str | None, recipe: Mapping[str, Any] | None = None, trained_on: Any = None
    ) -> DetectionImages:
        if dataset is None:
            return self._photos()
        recipe = recipe or {}
        opened = open_detection_dataset(dataset, self.data_dir, bool(recipe.get("skip_faulty")))
        known = trained_on if not recipe.get("also_train") else None  # then it covers both datasets
        if changes := data_changes(known, opened.identity):
            raise InputError(
                f"the data have changed since the training ({', '.join(changes[:4])}); restore them, or give"
                f" --dataset={dataset} to compare on them as they are now"
            )
        name = (recipe.get("val_split") if self.dataset is None else None) or validation_split(opened)
        split, total = opened.split(name), len(opened.split(name))
        source = f"the split {name} of {opened.title}"
        if total > self.images:
            split = split.part(name, 0, self.images)
            source = f"the first {self.images} images of {source}"

        def calibration() -> list[np.ndarray]:
            if "train" not in opened.split_names:
                raise InputError(f"{opened.name} has no split 'train' to calibrate int8 with")
            training = opened.split("train")
            count = min(self.calibration_images, len(training))
            return [training.read_image(index * len(training) // count) for index in range(count)]

        return DetectionImages(split, source, calibration)

    def _photos(self) -> DetectionImages:
        reduced = [name for name in self.artifacts if ARTIFACTS[name].precision != "float32"]
        if reduced:
            raise InputError(f"{reduced[0]} is compared by its mean average precision; give --dataset=NAME")
        pair = photos()
        views = [*pair, *(photo[:, : photo.shape[1] // 2] for photo in pair)]  # landscape and portrait
        return DetectionImages(views[: self.images], "scikit-learn's two sample photos", lambda: [])


@dataclasses.dataclass(frozen=True)
class DetectorSource:
    """The detector that a request exports.

    Attributes:
        recipe: the training's recipe, for the model card.
        origin: the weight file, if it is not of this package, for the model card.
    """

    detector: Detector
    output_dir: Path
    images: DetectionImages
    recipe: Mapping[str, Any] | None = None
    origin: DetectorWeights | None = None

    @property
    def license(self) -> str:
        """SPDX identifier of the license of the weights."""
        if self.origin is None:
            return "Apache-2.0"
        return self.origin.entry.license if self.origin.entry else "NOASSERTION"
