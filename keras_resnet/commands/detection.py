"""`python -m keras_resnet detect` and `detection`."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from keras_resnet import cli
from keras_resnet.data.preview import save_grid
from keras_resnet.detection.__main__ import EVALUATE
from keras_resnet.detection.data.annotations import DetectionSplit
from keras_resnet.detection.data.augmentation import DetectionAugmentation, augment_example
from keras_resnet.detection.data.files import IMAGE_SUFFIXES, MAX_IMAGE, decode_file, read_file
from keras_resnet.detection.data.sources import open_detection_dataset
from keras_resnet.detection.detections import Detections
from keras_resnet.detection.detector import Detector, build_detector
from keras_resnet.detection.drawing import CELL, draw_boxes, save_contact_sheet, thumbnail
from keras_resnet.detection.evaluation import evaluate as evaluate_detector
from keras_resnet.detection.improvements import ImprovedDetector
from keras_resnet.detection.registry import list_detector_weights
from keras_resnet.detection.report import table as evaluation_table
from keras_resnet.detection.report import write_report
from keras_resnet.detection.weight_files import read_detector_spec
from keras_resnet.errors import InputError, printable, require, unknown_name
from keras_resnet.files import atomic_path, os_errors_as_input_errors, write_json
from keras_resnet.images.decode import is_image
from keras_resnet.object_storage import is_stored
from keras_resnet.progress import ProgressBar
from keras_resnet.run_folder import RunFolder, open_run_folder
from keras_resnet.tables import engineering, markdown_table
from keras_resnet.training.distribution import Distribution, create
from keras_resnet.weights.weight_file import HDF5, SUFFIXES

_MOST_CELLS = 32  # rows or columns of a preview
_MOST_PHOTOS = 64  # on a contact sheet


def _open_detectors(
    weights: Sequence[str], detector: str | None, refine: bool, scales: Sequence[str]
) -> Detector | ImprovedDetector:
    """Builds a detector, or an `ImprovedDetector` if any of its options is used.

    Args:
        weights: those of each detector of an ensemble; see `_open_detector`.
        scales: texts, whole numbers of pixels.

    Raises:
        InputError: the weights cannot be opened, or the options are not valid.
    """
    try:
        sides = [int(text) for text in scales]
    except ValueError:
        raise InputError(f"--scales takes whole numbers, such as 400,600; got {','.join(scales)}") from None
    opened = [_open_detector(each, detector) for each in weights]
    if len(opened) == 1 and not refine and not sides:
        return opened[0]
    return ImprovedDetector(opened, refine=refine, scales=sides)


@contextlib.contextmanager
def _weight_files(weights: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    """The weight files of runs' folders, also in object storage, and their names for reports.

    Other weights are unchanged, even if a folder has their name.
    """
    with contextlib.ExitStack() as stack:
        files, names = [], []
        for each in weights:
            folder = stack.enter_context(open_run_folder(each))
            is_run = folder.path.is_dir() and (folder.recipe.exists() or folder.weights.exists())
            files.append(str(folder.weights) if is_run or is_stored(each) else each)
            names.append(folder.shown(files[-1]))
        yield files, names


def _open_detector(weights: str, detector: str | None = None) -> Detector:
    """Builds a detector with weights.

    Args:
        weights: a name of `list_detector_weights()`, or the path of a file.
        detector: a name of `list_detectors()`; None for that of the weights, if they name one.

    Raises:
        InputError: the weights do not exist or are not of this detector, or do not name one.
    """
    if detector is None:
        detector = _detector_of(weights)
    return build_detector(detector, weights=weights)


def _detector_of(weights: str) -> str:
    if weights in list_detector_weights():
        return weights.rpartition("/")[0]
    if weights.endswith(HDF5) and (spec := read_detector_spec(weights)):
        return spec.name
    if not os.path.isfile(weights) and not weights.endswith(SUFFIXES):
        of_detectors = [name for name in list_detector_weights() if name.endswith(f"/{weights}")]
        if of_detectors:
            raise InputError(
                f"add --detector=NAME: weights {weights!r} are published as {', '.join(of_detectors)}"
            )
        if os.path.isdir(weights):
            run = RunFolder(weights)
            raise InputError(f"the folder {weights} holds no {run.recipe.name} and no {run.weights.name}")
        raise unknown_name("weights of a detector", weights, list_detector_weights())
    raise InputError(
        f"add --detector=NAME: {weights} does not say which detector it is for"
        " (`python -m keras_resnet detection list`)"
    )


def costs(detectors: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the parameters of each detector, and its multiply-adds for a photo of 640 x 480 pixels."""
    found = [build_detector(name).complexity(480, 640) for name in detectors]
    return [(f"{cost.parameters:,}", engineering(cost.multiply_adds)) for cost in found]


def detect(
    photos: Sequence[str],
    weights: str,
    output: str,
    detector: str | None = None,
    json: str | None = None,
    score: float = 0.5,
    refine: bool = False,
    scales: Sequence[str] = (),
    ensemble: Sequence[str] = (),
) -> int:
    """Detects objects in photos, prints a table, and writes pictures with boxes.

    Returns:
        The exit status: 1 if some of several photos cannot be read, else 0.
    """
    require(0 <= score <= 1, "--score must be from 0 to 1", score)
    files = _find_photos(photos)
    pictures = _picture_paths(files, output, json)
    with _weight_files((weights, *ensemble)) as (weight_files, names):
        opened = _open_detectors(weight_files, detector, refine, scales)
    found: dict[str, tuple[tuple[int, ...], Detections]] = {}
    failed: dict[str, str] = {}
    drawings = []
    for index, file in enumerate(ProgressBar(len(files), "photos", "detecting objects").track(files)):
        try:
            image = _read_photo(file)
            detections = opened.detect([image])[0].above(score)
        except InputError as error:
            if len(files) == 1:
                raise
            failed[file] = " ".join(str(error).split())
            tqdm.write(f"error: {failed[file]}", file=sys.stderr)
            continue
        found[file] = image.shape[:2], detections
        drawing = draw_boxes(
            image, detections.boxes, detections.labels, opened.class_names, detections.scores
        )
        if pictures:
            _save_picture(drawing, pictures[index])
        else:
            drawings.append(thumbnail(drawing))
    if drawings:
        captions = [printable(os.path.basename(file)) for file in found]
        heading = f"{opened.name}, scores above {score:g}"
        with os_errors_as_input_errors(output), atomic_path(output, suffix=".png") as temporary:
            save_contact_sheet(drawings, captions, heading, temporary)
    if found:
        print(
            markdown_table(("photo", "class", "score", "box"), _rows(found, opened.class_names)), end="\n\n"
        )
    if json is not None:
        write_json(json, _json_value(opened, names, score, found, failed))
    objects = sum(len(detections) for _, detections in found.values())
    written = f"{Path(output)}: " if found else ""
    print(
        f"{written}{objects} objects in {len(found)} photos" + (f"; {len(failed)} failed" if failed else "")
    )
    return 1 if failed else 0


def _find_photos(paths: Sequence[str]) -> list[str]:
    """Returns the photos among files and folders; those of a folder are sorted, without its subfolders.

    Raises:
        InputError: there is no such file, or no photo in a folder.
    """
    if not paths:
        raise InputError("required: a photo or a folder of photos")
    files = []
    for path in map(os.path.expanduser, paths):
        if not os.path.lexists(path):
            raise InputError(f"there is no photo or folder {path!r}")
        if not os.path.isdir(path):
            files.append(path)
            continue
        with os_errors_as_input_errors(path):
            names = sorted(name for name in os.listdir(path) if not name.startswith("."))
        inner = [os.path.join(path, name) for name in names]
        chosen = [file for file in inner if os.path.isfile(file) and _looks_like_photo(file)]
        if not chosen:
            raise InputError(f"the folder {path!r} has no JPEG, PNG, GIF or BMP image")
        files += chosen
    return list(dict.fromkeys(files))


def _looks_like_photo(file: str) -> bool:
    if file.lower().endswith(IMAGE_SUFFIXES):
        return True
    try:
        with open(file, "rb") as opened:
            return is_image(opened.read(8))
    except OSError:
        return False


def _read_photo(path: str) -> np.ndarray:
    """Returns the pixels of a photo: uint8 (height, width, 3), RGB, upright; `InputError` names the file."""
    return decode_file(read_file(path, MAX_IMAGE), printable(path))


def _picture_paths(files: Sequence[str], output: str, json: str | None) -> list[Path]:
    """Where the picture of each photo is written; empty for a contact sheet of all.

    Raises:
        InputError: the output cannot be written, or would replace a photo.
    """
    if json is not None and not json.endswith(".json"):
        raise InputError(f"--json must end with .json; got {json}")
    if output.endswith(".png"):
        if os.path.isdir(output):
            raise InputError(f"--output={output} is a folder; choose another name for the picture")
        many = len(files) > _MOST_PHOTOS
        require(not many, f"a picture shows at most {_MOST_PHOTOS} photos; pass --output=FOLDER", len(files))
        paths = [Path(output)] if len(files) == 1 else []
    else:
        if os.path.lexists(output) and not os.path.isdir(output):
            raise InputError(f"--output={output} is a file; pass a folder, or a name that ends with .png")
        paths = [Path(output, name) for name in _unique_names(files)]
    sources = {os.path.realpath(file): file for file in files}
    for target in [*paths, *([] if paths else [output]), *([] if json is None else [json])]:
        if os.path.realpath(target) in sources:
            raise InputError(f"{target} would replace a photo; choose another name or folder")
    return paths


def _unique_names(files: Sequence[str]) -> list[str]:
    """The names of the pictures: those of the photos with another suffix, numbered where they are equal."""
    names: dict[str, None] = {}
    for file in files:
        stem, number = Path(file).stem, 1
        name = f"{stem}.png"
        while name in names:
            number += 1
            name = f"{stem}-{number}.png"
        names[name] = None
    return list(names)


def _save_picture(picture: np.ndarray, path: Path) -> None:
    with os_errors_as_input_errors(path), atomic_path(path, suffix=".png") as temporary:
        Image.fromarray(picture).save(temporary)


def _rows(
    found: dict[str, tuple[tuple[int, ...], Detections]], class_names: Sequence[str]
) -> list[tuple[str, ...]]:
    rows = []
    for file, (_, detections) in found.items():
        columns = (detections.labels, detections.scores, detections.boxes.tolist())
        for label, score, box in zip(*columns, strict=True):
            corners = ", ".join(f"{side:.1f}" for side in box)
            rows.append((printable(file), class_names[label], f"{score:.3f}", corners))
        if not len(detections):
            rows.append((printable(file), "-", "-", "-"))
    return rows


def _json_value(
    opened: Detector | ImprovedDetector,
    weights: Sequence[str],
    score: float,
    found: dict[str, tuple[tuple[int, ...], Detections]],
    failed: dict[str, str],
) -> dict:
    photos: list[dict] = []
    for file, (size, detections) in found.items():
        columns = (detections.labels.tolist(), detections.scores.tolist(), detections.boxes.tolist())
        objects = [
            {"class": opened.class_names[label], "label": label, "score": score, "box": box}
            for label, score, box in zip(*columns, strict=True)
        ]
        photos.append({"photo": printable(file), "height": size[0], "width": size[1], "objects": objects})
    photos += [{"photo": printable(file), "error": reason} for file, reason in failed.items()]
    return {
        "detector": opened.name,
        "weights": weights[0],
        "ensemble": weights[1:],
        "score": score,
        "class_names": list(opened.class_names),
        "photos": photos,
    }


def preview(
    dataset: str,
    output: str,
    data_dir: str | None = None,
    split: str = "train",
    scale: Sequence[str] = ("1", "1"),
    seed: int = 0,
    epoch: int = 0,
    images: int = 4,
    draws: int = 3,
    skip_faulty: bool = False,
) -> None:
    """Writes a contact sheet of images with their annotated boxes, and of `draws` augmentations of each."""
    if not output.endswith(".png"):
        raise InputError(f"--output must end with .png; got {output}")
    for name, value in (("images", images), ("draws", draws)):
        require(1 <= value <= _MOST_CELLS, f"--{name} must be from 1 to {_MOST_CELLS}", value)
    policy = DetectionAugmentation(scale=_scale(scale))
    opened = open_detection_dataset(dataset, data_dir, skip_faulty)
    part = opened.split(split)
    _report_skipped(part)
    # Spread evenly: folders may be sorted.
    chosen = [int(index) for index in np.arange(min(images, len(part))) * len(part) // min(images, len(part))]
    cells = [_views(part, index, policy, seed, range(epoch, epoch + draws)) for index in chosen]
    titles = [[f"{part.image_ids[index]}: objects: {len(part.objects[index])}"] for index in chosen]
    labels = ("annotated", *(f"epoch {epoch + draw}" for draw in range(draws)))
    low, high = policy.scale
    heading = f"{opened.title}, {split}: the annotated boxes; flip, scale {low:g} to {high:g}, seed {seed}"
    with os_errors_as_input_errors(output), atomic_path(output, suffix=".png") as temporary:
        save_grid(cells, titles, labels, heading, temporary, CELL)
    print(f"{Path(output)}: {len(chosen)} images, {draws} draws of each")


def _report_skipped(split: DetectionSplit) -> None:
    """Prints one line about the faulty annotations that `--skip_faulty` left out, if there are any."""
    if split.left_out:
        print(split.left_out, file=sys.stderr)


def _scale(texts: Sequence[str]) -> tuple[float, float]:
    try:
        low, high = map(float, texts)
    except ValueError:
        raise InputError(f"--scale must be two numbers, such as 0.5,2; got {','.join(texts)}") from None
    return low, high


def _views(
    split: DetectionSplit, index: int, policy: DetectionAugmentation, seed: int, epochs: range
) -> list[np.ndarray]:
    """An image with its boxes, and as it is augmented in each epoch."""
    image, objects = split.read_image(index), split.objects[index]
    views = [(image, objects)]
    views += [augment_example(image, objects, policy, seed, epoch, index) for epoch in epochs]
    return [draw_boxes(pixels, own.boxes, own.labels, split.class_names) for pixels, own in views]


def evaluate(**flags: Any) -> None:
    """Evaluates a detector, prints a table and writes a report; takes the values of `EVALUATE.flags`."""
    distribution = create(flags["strategy"], flags["worker_timeout"])
    with _weight_files((flags["weights"], *flags["ensemble"])) as (files, names):
        _evaluate(flags, distribution, files, names)


def _evaluate(
    flags: dict[str, Any], distribution: Distribution, weights: Sequence[str], names: Sequence[str]
) -> None:
    output = flags["output"]
    if os.path.lexists(output) and not os.path.isdir(output):
        raise InputError(f"--output={output} is a file; pass a folder")
    dataset = open_detection_dataset(flags["dataset"], flags["data_dir"], flags["skip_faulty"])
    split = dataset.split(flags["split"] or _evaluation_split(dataset.split_names))
    if distribution.is_chief:
        _report_skipped(split)
    with distribution.scope():
        detector = _open_detectors(weights, flags["detector"], flags["refine"], flags["scales"])
    options = {name: flags[name] for name in ("batch_size", "max_bad_images")}
    evaluation = evaluate_detector(detector, split, distribution=distribution, **options)
    if not distribution.is_chief:
        return
    print(evaluation_table(evaluation))
    command = cli.command_line("python -m keras_resnet detection evaluate", EVALUATE, flags)
    with os_errors_as_input_errors(output):
        write_report(
            *(evaluation, output, command, dataset.title, weights),
            names=names,
            refine=flags["refine"],
            scales=list(map(int, flags["scales"])),
        )
    print(
        f"{split.name} of {dataset.title}: {evaluation.images} images, {evaluation.seconds:.1f} s;"
        f" see {output}"
    )


def _evaluation_split(names: Sequence[str]) -> str:
    """The first split that is not for training, or the only one."""
    return next((name for name in names if not name.startswith("train")), names[0])
