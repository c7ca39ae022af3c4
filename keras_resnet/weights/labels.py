"""ImageNet's thousand classes in the order of the logits.

The WordNet identifiers and their order are those of ILSVRC 2012 in TensorFlow Datasets
(`imagenet2012/labels.txt`), the names those of torchvision (`torchvision/models/_meta.py`), all distinct.
"""

import functools
import operator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet.errors import InputError, unknown_name


@functools.cache
def labels(name: str) -> tuple[tuple[str, str], ...]:
    """Returns the pairs, such as ("n02099601", "golden retriever"), of a label set ("imagenet")."""
    if name != "imagenet":
        raise unknown_name("label set", name, ["imagenet"])
    text = Path(__file__).with_name("imagenet_labels.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines())
    return tuple((identifier, label) for identifier, label in rows)


def decode_predictions(probabilities: Any, top: int = 5) -> list[list[tuple[str, str, float]]]:
    """Decodes predictions for ImageNet like `keras.applications.*.decode_predictions`.

    `probabilities` are an array or a tensor (batch, 1000) of probabilities or logits. Returns for each image
    `top` (1 to 1000) triples (WordNet identifier, name, probability) in descending order; ties are ordered by
    class index.
    """
    classes = labels("imagenet")
    scores = np.asarray(keras.ops.convert_to_numpy(probabilities))
    if scores.ndim != 2 or scores.shape[1] != len(classes):
        raise InputError(f"predictions must have the shape (batch, {len(classes)}); got {scores.shape}")
    if isinstance(top, bool) or not hasattr(top, "__index__") or not 1 <= top <= len(classes):
        raise InputError(f"top must be an integer from 1 to {len(classes)}; got {top!r}")
    # Unsigned types cannot be negated and bfloat16 cannot be sorted.
    scores = scores.astype("float64")
    order = np.argsort(-scores, axis=1, kind="stable")[:, : operator.index(top)]
    return [
        [(*classes[index], float(row[index])) for index in best]
        for row, best in zip(scores, order, strict=True)
    ]
