"""`python -m export`: a trained workdir, or weights of a zoo network, to verified artifacts.

Exit status: 0 if every artifact equals the Keras model, 1 if one differs, 2 for bad input.
"""

import os

# Before TensorFlow is loaded: its start-up notes are of no use to whoever exports.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import flags

from keras_resnet.quiet import quiet

with quiet():
    import tensorflow  # noqa: F401

from export.zoo import export_zoo
from keras_resnet import cli
from keras_resnet.errors import InputError
from keras_resnet.export.artifacts import Options
from keras_resnet.export.pipeline import export_weights, export_workdir

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training, with its weights and recipe.")
_MODEL = flags.DEFINE_string("model", None, "A network of the zoo, or all, together with --weights.")
_WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "Of --model: a weight file, our own or another zoo's (.safetensors, .pth, .h5); the name of published "
    "weights, or imagenet; or none for random ones. For --model=all none, or a folder of MODEL.weights.h5.",
)
_CLASSES = flags.DEFINE_integer("classes", None, "Width of the last layer, if not the network's own.")
_FORMATS = flags.DEFINE_string("formats", "saved_model,tflite,onnx", "What to write, separated by commas.")
_PRECISION = flags.DEFINE_string(
    "precision",
    "float32",
    "Of the numbers inside, separated by commas: float32, float16 (TFLite, ONNX), bfloat16 (SavedModel), "
    "dynamic (TFLite), int8 (TFLite, ONNX).",
)
_IO_DTYPE = flags.DEFINE_string("io_dtype", "float32", "Of the pixels of TFLite and ONNX: float32 or uint8.")
_OPSET = flags.DEFINE_integer("opset", 17, "Of ONNX files.")
_LAYOUT = flags.DEFINE_string("layout", "nhwc", "Of the images that ONNX files take: nhwc or nchw.")
_DYNAMIC_SIZE = flags.DEFINE_bool("dynamic_size", False, "Whether ONNX files take images of any size.")
_CALIBRATION_IMAGES = flags.DEFINE_integer(
    "calibration_images", 256, "For int8: images of the dataset's training split."
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Where to write. Default: WORKDIR/export, exported/MODEL, or exported."
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
        "precision": _PRECISION.value,
        "calibration_images": _CALIBRATION_IMAGES.value,
        "options": Options(
            io_dtype=_IO_DTYPE.value,
            opset=_OPSET.value,
            layout=_LAYOUT.value,
            dynamic_size=_DYNAMIC_SIZE.value,
        ),
    }
    if _WORKDIR.value is not None:
        if given:
            raise InputError(f"--workdir and {given[0]} exclude each other")
        return 0 if export_workdir(_WORKDIR.value, **common) else 1
    if _MODEL.value is None or _WEIGHTS.value is None:
        raise InputError("give --workdir=DIR, or --model=NAME and --weights=FILE_OR_NAME")
    if _CLASSES.value is not None and _CLASSES.value < 1:
        raise InputError(f"--classes must be at least 1; got {_CLASSES.value}")
    if _MODEL.value == "all":
        if _CLASSES.value is not None:
            raise InputError("--classes and --model=all exclude each other")
        return 0 if export_zoo(_WEIGHTS.value, **common) else 1
    return 0 if export_weights(**weights_flags, **common) else 1


if __name__ == "__main__":
    cli.run(main)
