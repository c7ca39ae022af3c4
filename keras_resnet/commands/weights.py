"""`python -m keras_resnet weights convert` and `compare`."""

from pathlib import Path

from keras_resnet.errors import InputError
from keras_resnet.files import os_errors_as_input_errors
from keras_resnet.images.preprocessing import Preprocessing
from keras_resnet.models.config import get_config
from keras_resnet.weights.compare import TOLERANCE
from keras_resnet.weights.compare import compare as compare_weights
from keras_resnet.weights.huggingface import license_id
from keras_resnet.weights.native import save_weights
from keras_resnet.weights.spec import ModelSpec, check_architecture
from keras_resnet.weights.weight_file import open_weights
from keras_resnet.weights.writers import check_writable, name_in, write_weights


def convert_weights(
    source: str, model: str | None, output: str, to: str | None = None, license: str | None = None
) -> ModelSpec:
    """Converts weights to a `.weights.h5` file of this package, or to the format of another library.

    The source is a file, a folder in timm's format or the name of published weights. The converted network
    takes RGB images, except in files for keras.applications, where the first kernel is reversed.

    Args:
        model: the network of a source that does not name it.
        to: torchvision, timm, keras_applications, huggingface, or None for a `.weights.h5` file.
        license: of the weights, for the model card in a folder for Hugging Face. Default: that of published
            weights, else "unknown".

    Raises:
        InputError: the source cannot be downloaded or read, or does not match the model; or the library does
            not have the network.
        OSError: the output cannot be written.
    """
    if to is None and not str(output).endswith(".weights.h5"):
        raise InputError(f"--output must end with .weights.h5; got {output}")
    if license is not None and to != "huggingface":
        raise InputError("--license is for the model card of --to=huggingface")
    if license is not None:
        license_id(license)  # raises for an invalid one
    with open_weights(source, model) as file:
        if model is None and file.described is None and file.entry is None:
            raise InputError(f"{source} does not name its network; pass --model=NAME")
        if to is None:
            file.tensors()  # raises for a native file
        spec, entry = file.spec, file.entry
        if model is not None:
            check_architecture(source, spec.model, spec.config, get_config(model))
        if to is not None:
            check_writable(to, spec, output)
        network = spec.build()
        file.load(network)
    if to is None:
        save_weights(network, output, spec)
    else:
        write_weights(network, spec, to, output, license, entry)
    return spec


def convert(
    source: str, output: str, model: str | None = None, to: str | None = None, license: str | None = None
) -> None:
    """Converts weights and prints what was written."""
    with os_errors_as_input_errors(Path(output)):
        spec = convert_weights(source, model, output, to, license)
    if to is None:
        print(f"{Path(output)}: {spec.model}, {spec.classes} classes")
        return
    name = name_in(to, spec)
    bgr = to == "keras_applications" and spec.config.block != "preactivation"
    print(f"{Path(output)}: {name} of {to}, {spec.classes} classes")
    preprocessing = spec.preprocessing.for_channels(spec.input_shape[2])
    print(f"its images: {'BGR, ' if bgr else ''}{_text(preprocessing)}")


def _text(preprocessing: Preprocessing) -> str:
    resize, size, normalization = preprocessing.resize, preprocessing.size, preprocessing.normalization
    crop = f"resized to {size}" if resize is None else f"shorter side {resize}, crop {size}"
    statistics = "with one mean per pixel subtracted"
    if len(normalization.shape) == 1:
        statistics = f"mean {list(normalization.mean)} and std {list(normalization.std)} of pixels 0 to 255"
    return f"{crop}, {preprocessing.interpolation}, {statistics}"


def compare(source: str, model: str) -> int:
    """Compares weights, prints the difference and returns the exit status."""
    framework, difference = compare_weights(source, model)
    equal = difference <= TOLERANCE
    print(
        f"{source}: {model} here and in {framework} differ by at most "
        f"{difference:.1e} of the largest logit: {'equal' if equal else 'NOT EQUAL'}"
    )
    return 0 if equal else 1
