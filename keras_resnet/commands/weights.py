"""`python -m keras_resnet weights convert` and `compare`."""

from pathlib import Path

from keras_resnet.errors import InputError
from keras_resnet.files import os_errors_as_input_errors
from keras_resnet.weights.compare import TOLERANCE
from keras_resnet.weights.compare import compare as compare_weights
from keras_resnet.weights.native import save_weights
from keras_resnet.weights.spec import ModelSpec
from keras_resnet.weights.weight_file import open_weights


def convert_weights(source: str, model: str, output: str) -> ModelSpec:
    """Converts another zoo's weights to a `.weights.h5` file that `build_model(model, weights=output)` reads.

    The source is a file or the name of published weights. The converted network takes RGB images, even if
    the source takes BGR.

    Raises:
        InputError: the source cannot be downloaded or read, or does not match the model.
        OSError: the output cannot be written.
    """
    if not str(output).endswith(".weights.h5"):
        raise InputError(f"--output must end with .weights.h5; got {output}")
    with open_weights(source, model) as file:
        file.tensors()  # raises for a native file
        network = file.spec.build()
        file.load(network)
    save_weights(network, output, file.spec)
    return file.spec


def convert(source: str, model: str, output: str) -> None:
    """Converts weights and prints what was written."""
    with os_errors_as_input_errors(Path(output)):
        spec = convert_weights(source, model, output)
    print(f"{Path(output)}: {spec.model}, {spec.classes} classes")


def compare(source: str, model: str) -> int:
    """Compares weights, prints the difference and returns the exit status."""
    framework, difference = compare_weights(source, model)
    equal = difference <= TOLERANCE
    print(
        f"{source}: {model} here and in {framework} differ by at most "
        f"{difference:.1e} of the largest logit: {'equal' if equal else 'NOT EQUAL'}"
    )
    return 0 if equal else 1
