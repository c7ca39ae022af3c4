"""ImageNet's thousand classes, in the order of the logits of every network trained on them.

The WordNet identifiers and their order are those of ILSVRC 2012, as TensorFlow Datasets lists them
(`imagenet2012/labels.txt`); the names are torchvision's (`torchvision/models/_meta.py`), of which no
two are equal.
"""

import functools
import operator
from pathlib import Path

import keras
import numpy as np

from keras_resnet.errors import InputError, unknown_name

_FILES = {"imagenet": "imagenet_labels.tsv"}


@functools.cache
def labels(name: str) -> tuple[tuple[str, str], ...]:
    """The classes of a label set, in the order of the logits.

    Args:
        name: "imagenet".

    Returns:
        A pair a class: its WordNet identifier and its name, such as ("n02099601", "golden retriever").

    Raises:
        InputError: there is no such label set.
    """
    if name not in _FILES:
        raise unknown_name("label set", name, _FILES)
    text = Path(__file__).with_name(_FILES[name]).read_text(encoding="utf-8")
    return tuple(tuple(line.split("\t")) for line in text.splitlines())


def decode_predictions(probabilities, top: int = 5) -> list[list[tuple[str, str, float]]]:
    """The likeliest of ImageNet's classes for each image, as keras.applications' function of this name.

    Args:
        probabilities: array or tensor (batch, 1000); logits are ranked alike.
        top: how many classes, 1 to 1000.

    Returns:
        For each image `top` triples (WordNet identifier, name, probability), the likeliest first; of
        equals the class with the lower index.

    Raises:
        InputError: the shape, or `top`, is another one.
    """
    classes = labels("imagenet")
    scores = np.asarray(keras.ops.convert_to_numpy(probabilities))
    if scores.ndim != 2 or scores.shape[1] != len(classes):
        raise InputError(f"predictions must have the shape (batch, {len(classes)}); got {scores.shape}")
    if isinstance(top, bool) or not hasattr(top, "__index__") or not 1 <= top <= len(classes):
        raise InputError(f"top must be an integer from 1 to {len(classes)}; got {top!r}")
    # In 64 bits: unsigned types have no negatives, and bfloat16 does not sort.
    scores = scores.astype("float64")
    order = np.argsort(-scores, axis=1, kind="stable")[:, : operator.index(top)]
    return [
        [(*classes[index], float(row[index])) for index in best]
        for row, best in zip(scores, order, strict=True)
    ]
