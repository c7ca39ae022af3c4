"""The table of file formats: a row has everything that an export needs to know about a format."""

import dataclasses
import types
from collections.abc import Callable, Mapping
from pathlib import Path

from keras_resnet.files import starts_with

FLOAT32_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class FileFormat:
    """A file format that classifiers are exported to.

    Functions are named as "module:function" and imported when they are called.

    Attributes:
        title: name of the format, for messages.
        runtime: name of the runtime that opens the files, for messages.
        write: function of a folded graph, the path, the metadata, and by keyword `precision` and `options`;
            returns the path of the file, or of the SavedModel's version.
        open: function of the path that returns an `isolated.Opened`. It runs in a process that can import
            neither Keras nor this package, so its module must not import them.
        tolerances: `ArtifactKind.tolerance` for each precision that the format has.
        options: the fields of `Options` that `write` takes. Labels, and the layout of the images, of a format
            whose `write` does not take `labels` are in the metadata.
        usage: Python code that computes `probabilities` with the file $file from $images, for the model card.
        mark: bytes in the first bytes of the files, so that an export replaces no other file; None for a
            folder of versions, which is only added to.
        read_labels: function of the path that returns the class names; None takes those in the metadata that
            `open` returns.
        several_signatures: whether it has the signatures that `check_signatures.py` compares.
        probability_tolerances: `ArtifactKind.probability_tolerance` of some precisions.
    """

    title: str
    runtime: str
    write: str
    open: str
    tolerances: Mapping[str, float]
    options: tuple[str, ...]
    usage: str
    mark: bytes | None = None
    read_labels: str | None = None
    several_signatures: bool = False
    probability_tolerances: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def is_ours(self) -> Callable[[Path], bool]:
        """Whether an existing file or folder with an artifact's name may be replaced."""
        return (lambda version: False) if self.mark is None else starts_with(self.mark)


_IN_TENSORFLOW = """\
import tensorflow as tf

model = tf.saved_model.load("$file")
results = model.signatures["serving_default"](images=tf.constant($images))
probabilities = results["probabilities"].numpy()
"""
_IN_LITERT = """\
from ai_edge_litert.interpreter import Interpreter

model = Interpreter("$file").get_signature_runner("serving_default")
probabilities = model(images=$images)["probabilities"]
"""
_IN_ONNX_RUNTIME = """\
import onnxruntime

model = onnxruntime.InferenceSession("$file", providers=["CPUExecutionProvider"])
(probabilities,) = model.run(["probabilities"], {"images": $images})
"""

# The name of a format of files is also their suffix.
FILE_FORMATS: Mapping[str, FileFormat] = types.MappingProxyType(
    {
        "saved_model": FileFormat(
            title="SavedModel",
            runtime="TensorFlow",
            write="keras_resnet.export.writers.saved_model:to_saved_model",
            open="keras_resnet.export.isolated:open_saved_model",
            tolerances={"float32": FLOAT32_TOLERANCE, "bfloat16": 0.02},
            options=("labels", "preprocessing"),
            usage=_IN_TENSORFLOW,
            read_labels="keras_resnet.export.writers.saved_model:read_labels",
            several_signatures=True,
        ),
        "tflite": FileFormat(
            title="TFLite",
            runtime="LiteRT",
            write="keras_resnet.export.writers.tflite:to_tflite",
            open="keras_resnet.export.isolated:open_tflite",
            tolerances={"float32": FLOAT32_TOLERANCE, "float16": 0.002, "dynamic": 0.03, "int8": 0.1},
            # An int8 file rounds its probabilities, and the logits that they come from, to 8 bits.
            probability_tolerances={"int8": 1 / 64},
            options=("labels", "io_dtype", "calibration", "batch_size"),
            usage=_IN_LITERT,
            mark=b"TFL3",
            read_labels="keras_resnet.export.writers.tflite_metadata:read_labels",
        ),
        "onnx": FileFormat(
            title="ONNX",
            runtime="ONNX Runtime",
            write="keras_resnet.export.writers.onnx:to_onnx",
            open="keras_resnet.export.isolated:open_onnx",
            tolerances={"float32": FLOAT32_TOLERANCE, "float16": 0.002, "int8": 0.1},
            options=("io_dtype", "opset", "layout", "dynamic_size", "calibration"),
            usage=_IN_ONNX_RUNTIME,
            mark=b"keras_resnet",  # the producer
        ),
    }
)
