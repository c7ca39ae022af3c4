"""`python -m export`: a trained workdir, or weights of a zoo network, to verified artifacts.

Exit status: 0 if every artifact equals the Keras model, 1 if one differs, 2 for bad input.
"""

import os

# Before TensorFlow is loaded: its start-up notes are of no use to whoever exports.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import flags

from export.quiet import quiet

with quiet():
    import tensorflow  # noqa: F401

from export.pipeline import export_weights, export_workdir
from keras_resnet import cli
from keras_resnet.errors import InputError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training, with its weights and recipe.")
_MODEL = flags.DEFINE_string("model", None, "A network of the zoo, together with --weights.")
_WEIGHTS = flags.DEFINE_string("weights", None, "A weight file of --model.")
_CLASSES = flags.DEFINE_integer("classes", None, "Width of the last layer, if not the network's own.")
_FORMATS = flags.DEFINE_string("formats", "saved_model,tflite,onnx", "What to write, separated by commas.")
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Where to write. Default: WORKDIR/export, or exported/MODEL."
)
_DATASET = flags.DEFINE_string("dataset", None, "Verify on this dataset's evaluation split.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets lie.")


def main() -> int:
    """Exports as the flags say; returns the exit status."""
    weights_flags = {"model": _MODEL.value, "weights": _WEIGHTS.value, "classes": _CLASSES.value}
    given = [f"--{name}" for name, value in weights_flags.items() if value is not None]
    common = {
        "formats": _FORMATS.value,
        "output_dir": _OUTPUT_DIR.value,
        "dataset": _DATASET.value,
        "data_dir": _DATA_DIR.value,
    }
    if _WORKDIR.value is not None:
        if given:
            raise InputError(f"--workdir and {given[0]} exclude each other")
        return 0 if export_workdir(_WORKDIR.value, **common) else 1
    if _MODEL.value is None or _WEIGHTS.value is None:
        raise InputError("give --workdir=DIR, or --model=NAME and --weights=FILE")
    if _CLASSES.value is not None and _CLASSES.value < 1:
        raise InputError(f"--classes must be at least 1; got {_CLASSES.value}")
    return 0 if export_weights(**weights_flags, **common) else 1


if __name__ == "__main__":
    cli.run(main)
