"""All ways into the decoder, and a child process that measures them: `image_entrances.py FOLDER [together]`.

For each file and entrance the child prints a JSON line: name, entrance, answer (whether the image can be
used), growth in MiB and seconds; or, if it reads the files together, a line per entrance with all answers.
"""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_resnet.classification.batches import view_batches
from keras_resnet.classification.protocols import PROTOCOLS
from keras_resnet.data import BadImages, IndexedSplit, Transform, training_batches
from keras_resnet.data.examples import Shard
from keras_resnet.export.writers.image_bytes import decode_batch
from keras_resnet.images.decode import decode_error
from keras_resnet.images.preprocessing import Normalization, Preprocessing

PREPARED = Preprocessing(224, 256, "bilinear", Normalization.imagenet())


@tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
def _served(files):
    return tf.reduce_max(decode_batch(files, 224, 256, 3, "bilinear"))


def serve(files):
    """`classify_bytes` without the network, one file a request."""
    answers = []
    for file in files:
        try:
            answers.append(np.isfinite(_served(tf.constant([file]))))
        except tf.errors.InvalidArgumentError as error:
            answers.append("image_bytes[0] is " in str(error) and None)
    assert all(answer is None or answer for answer in answers)
    return [answer is not None for answer in answers]


def check(files):
    reasons = [decode_error(file) for file in files]
    assert not any("\n" in (reason or "") for reason in reasons)
    return [reason is None for reason in reasons]


def _split(files):
    images = np.array([*files, b""], dtype=object)[:-1]  # an array of objects, even for one file
    return IndexedSplit("files", images, np.zeros(len(files), "int32"))


def _answers(files, bad):
    names = [f"record {index}" for index in range(len(files))]
    known = {name for name, _, _ in bad.rows()}
    assert known <= set(names)
    return [name not in known for name in names]


def train(augmentation):
    def answers(files):
        bad, transform = BadImages(), Transform.create(224, Normalization.imagenet(), augmentation)
        batches = training_batches(_split(files), transform, global_batch=1, seed=0, epoch=0, bad=bad)
        assert sum(int(batch["weights"].sum()) for batch in batches.as_numpy_iterator()) + bad.count == len(
            files
        )
        return _answers(files, bad)

    return answers


def evaluate(protocol):
    def answers(files):
        bad = BadImages()
        batches = view_batches(_split(files), PROTOCOLS[protocol], [PREPARED], Shard(1), bad)
        assert sum(int(batch["weights"].sum()) for batch in batches.as_numpy_iterator()) + bad.count == len(
            files
        )
        return _answers(files, bad)

    return answers


ENTRANCES = {
    "served": serve,
    "check": check,
    "train": train("inception"),
    "evaluate": evaluate("single_crop"),
}
ELONGATED = {
    "train on scaled crops": train("scale_crop_flip"),
    "evaluate ten crops": evaluate("ten_crop"),
    "evaluate scales": evaluate("multi_scale"),
}
"""Entrances for images whose name has an "x"."""


def _memory(field):
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def growth(function, *arguments):
    """The result, and by how many MiB the process' memory grew meanwhile, and the seconds."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start = _memory("VmRSS"), time.perf_counter()
    result = function(*arguments)
    return result, _memory("VmHWM") - before, time.perf_counter() - start


def main(folder, together=""):
    files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    if together:
        for entrance, function in ENTRANCES.items():
            print(json.dumps({"entrance": entrance, "answers": function(list(files.values()))}), flush=True)
        return
    warm = tf.io.encode_jpeg(np.zeros((300, 300, 3), "uint8")).numpy()
    for entrance, function in (ENTRANCES | ELONGATED).items():
        assert function([warm]) == [True]
        for name, file in files.items():
            if entrance in ENTRANCES or " x " in name:
                (answer,), grown, seconds = growth(function, [file])
                row = {"name": name, "entrance": entrance, "answer": answer}
                print(json.dumps(row | {"grown": grown, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
