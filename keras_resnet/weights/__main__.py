"""`python -m keras_resnet.weights convert`: another zoo's weights as our own `.weights.h5`.

Exit status: 0, or 2 for bad input, with one line that says what is wrong.
"""

# argparse as in `python -m keras_resnet`: `keras_resnet.cli` knows no commands and no positional
# arguments, and its absl is not among what weights may import.
import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_resnet.config import get_config
from keras_resnet.errors import InputError
from keras_resnet.preprocessing import Normalization
from keras_resnet.weights.files import save_weights
from keras_resnet.weights.foreign import assign_tensors, count_classes, read_tensors
from keras_resnet.weights.spec import ModelSpec

# keras.applications' ResNets subtract this, as the paper's released models do; here as red, green, blue.
_APPLICATIONS = Normalization((123.68, 116.779, 103.939), (1.0, 1.0, 1.0))


def convert(source: str, model: str, output: str, classes: int | None = None) -> ModelSpec:
    """Writes another zoo's weights as a file that `build_model(model, weights=output)` reads.

    The networks of keras.applications take blue, green, red. The first convolution's input channels
    are reversed, so that the converted network takes red, green, blue as all others here.

    Args:
        source: a file that `read_tensors` reads.
        model: a name of `list_models()`.
        output: ends with `.weights.h5`.
        classes: that the file must have. Default: whatever it has.

    Returns:
        What the file now says about itself.

    Raises:
        InputError: the source cannot be read or does not fit the model.
        OSError: the output cannot be written.
    """
    config = get_config(model)
    if not str(output).endswith(".weights.h5"):
        raise InputError(f"--output must end with .weights.h5; got {output}")
    if classes is not None and classes < 1:
        raise InputError(f"--classes must be at least 1; got {classes}")
    kind, tensors = read_tensors(source)
    spec = ModelSpec.default(model, classes or count_classes(tensors))
    if kind == "applications":
        spec = dataclasses.replace(spec, normalization=_APPLICATIONS)
    network = spec.build()
    assign_tensors(network, kind, tensors, config, source)
    if kind == "applications":
        (kernel,) = network.get_layer("conv1_conv").weights
        kernel.assign(np.flip(kernel.numpy(), axis=2))
    save_weights(network, output, spec)
    return spec


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """One line, without the usage."""
        _fail(message)


def _fail(message: object) -> None:
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
    sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that the arguments name."""
    parser = _Parser(prog="python -m keras_resnet.weights", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("convert", help="write another zoo's weights as .weights.h5")
    command.add_argument("source", help=".safetensors, .pth, .pt or keras.applications' .h5")
    command.add_argument("--model", required=True, help="a network of the zoo, such as resnet50_v1_5")
    command.add_argument("--output", required=True, help="file to write; ends with .weights.h5")
    command.add_argument("--classes", type=int, help="width of the last layer; default: the file's")
    given = parser.parse_args(arguments)
    try:
        spec = convert(given.source, given.model, given.output, given.classes)
    except (InputError, OSError) as error:
        _fail(error)
    print(f"{Path(given.output)}: {spec.model}, {spec.classes} classes")


if __name__ == "__main__":
    main()
