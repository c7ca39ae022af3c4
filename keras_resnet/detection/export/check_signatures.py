"""Compares the signatures of an exported file with the detector: batches, portrait and landscape, bytes."""

import functools
import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from keras_resnet.detection.data.files import decode_file
from keras_resnet.detection.detections import Detections
from keras_resnet.detection.detector import Detector
from keras_resnet.detection.export.comparison import detect_on_cpu, problem, read_detections
from keras_resnet.detection.export.serving import CLASSES, COUNT, DETECT_BYTES, IMAGE_BYTES, LABELS
from keras_resnet.errors import InputError
from keras_resnet.export.runtimes import Artifact, RunError
from keras_resnet.export.serving import INPUT, SIGNATURE, UINT8_SIGNATURE


def broken_signatures(file: Artifact, detector: Detector, image: np.ndarray) -> list[str]:
    """Calls a file with batches of three images, portrait and landscape.

    The signatures of a SavedModel are also called without images and with JPEG and PNG files, one of which is
    damaged.

    Args:
        image: uint8 (height, width, 3), RGB, of which parts are taken.

    Returns:
        The differences from the detector, as sentences.
    """
    if list(file.inputs) != [INPUT]:
        return [f"its inputs are {', '.join(file.inputs)}, not {INPUT}"]
    _, shape = file.inputs[INPUT]
    if tuple(shape) != (None, None, None, 3):
        return [f"its input {INPUT} is of shape {tuple(shape)}, not of any number of images of any size"]
    side, own = min(image.shape[:2]), _OwnDetections(detector)
    views = [image[: -(-side * 3 // 4), :side], image[:side, : -(-side * 3 // 4)]]
    checks: list[tuple[str, Callable[..., str | None]]] = []
    for view in views:
        pixels = np.stack([view, view[:, ::-1], view[::-1]])
        checks.append((SIGNATURE, functools.partial(_pixels, pixels=pixels.astype("float32"))))
        if file.call is not None:
            checks.append((UINT8_SIGNATURE, functools.partial(_pixels, pixels=pixels)))
    if file.call is not None:
        checks.append((DETECT_BYTES, functools.partial(_bytes, images=[views[0], image, views[1]])))
        checks.append((DETECT_BYTES, functools.partial(_damaged, image=image)))
        checks += [(name, _no_images) for name in (SIGNATURE, UINT8_SIGNATURE, DETECT_BYTES)]
    problems = []
    for signature, check in checks:
        try:
            found = check(signature, file, own)
        except RunError as error:
            found = str(error).splitlines()[0]
        except InputError as error:
            found = f"returns unexpected outputs: {error}"
        if found:
            problems.append(f"its signature {signature} {found}")
    return list(dict.fromkeys(problems))


class _OwnDetections:
    """The detector's own detections, computed once for equal images, and only if they are needed."""

    def __init__(self, detector: Detector):
        self.class_names = detector.class_names
        self._detector = detector
        self._known: dict[tuple, Detections] = {}

    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        keys = [(image.shape, image.tobytes()) for image in images]
        for key, image in zip(keys, images, strict=True):
            if key not in self._known:
                (self._known[key],) = detect_on_cpu(self._detector, [image])
        return [self._known[key] for key in keys]


def _pixels(signature: str, file: Artifact, own: _OwnDetections, pixels: np.ndarray) -> str | None:
    images = list(pixels.astype("uint8"))
    answers = file.run(pixels) if file.call is None else file.call(signature, {INPUT: pixels})
    return _difference(answers, file, own, images)


def _bytes(signature: str, file: Artifact, own: _OwnDetections, images: Sequence[np.ndarray]) -> str | None:
    assert file.call is not None
    files = [encoded(image, "JPEG" if index % 2 else "PNG") for index, image in enumerate(images)]
    decoded = [decode_file(content, "image") for content in files]
    return _difference(file.call(signature, {IMAGE_BYTES: np.array(files)}), file, own, decoded)


def _damaged(signature: str, file: Artifact, own: _OwnDetections, image: np.ndarray) -> str | None:
    assert file.call is not None
    good, bad = encoded(image, "PNG"), encoded(image, "JPEG")
    try:
        file.call(signature, {IMAGE_BYTES: np.array([good, bad[: len(bad) // 2], good])})
    except RunError as error:
        named = f"{IMAGE_BYTES}[1] is damaged" in str(error)
        return None if named else f"does not name the damaged image: {str(error).splitlines()[0]}"
    return "accepts a damaged image"


def _no_images(signature: str, file: Artifact, own: _OwnDetections) -> str | None:
    assert file.call is not None
    inputs = {
        SIGNATURE: {INPUT: np.zeros((0, 8, 8, 3), "float32")},
        UINT8_SIGNATURE: {INPUT: np.zeros((0, 8, 8, 3), "uint8")},
        DETECT_BYTES: {IMAGE_BYTES: np.zeros(0, "S1")},
    }
    answers = file.call(signature, inputs[signature])
    return None if not read_detections(answers, 0) else "detects objects in a batch without images"


def _difference(
    answers: dict[str, np.ndarray], file: Artifact, own: _OwnDetections, images: Sequence[np.ndarray]
) -> str | None:
    """Returns the first difference between the outputs for a batch and the detector's detections."""
    found = read_detections(answers, len(images))
    for index, pair in enumerate(zip(found, own(images), strict=True)):
        if sentence := problem(*pair):
            return f"{sentence} in image {index} of a batch of {len(images)}"
    if CLASSES not in answers:
        return f"has no output {CLASSES}" if file.call is not None else None
    names = np.array([*own.class_names, ""])
    valid = np.arange(answers[LABELS].shape[1]) < answers[COUNT][:, None]
    right = names[np.where(valid, answers[LABELS], len(names) - 1)]
    return None if np.array_equal(answers[CLASSES], right) else "returns classes that do not match the labels"


def encoded(image: np.ndarray, format: str) -> bytes:
    """Returns the bytes of an image file, "JPEG" or "PNG"."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format)
    return file.getvalue()
