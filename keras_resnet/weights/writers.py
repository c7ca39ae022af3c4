"""Writes weights in the formats of other libraries."""

import os
from pathlib import Path

import keras

from keras_resnet.errors import InputError, unknown_name
from keras_resnet.weights.conversion import collect_tensors
from keras_resnet.weights.huggingface import UNKNOWN, license_id, timm_config, write_folder
from keras_resnet.weights.keras_applications import applications_model, applications_names, write_applications
from keras_resnet.weights.registry import PretrainedWeights
from keras_resnet.weights.spec import ModelSpec
from keras_resnet.weights.torch_files import SUFFIXES, torch_model, torch_names, write_torch_file

_ENDINGS = {
    "torchvision": SUFFIXES,
    "timm": SUFFIXES,
    "keras_applications": (".h5",),
    "huggingface": (),  # a folder
}


def check_writable(library: str, spec: ModelSpec, output: str | os.PathLike) -> None:
    """Raises `InputError` if a library does not have the network, or would not read the `output`."""
    if library not in _ENDINGS:
        raise unknown_name("library", library, _ENDINGS)
    name, endings = Path(output).name, _ENDINGS[library]
    if not endings and (not name or name.endswith((*SUFFIXES, ".h5"))):
        raise InputError(f"the output for {library} is the name of a new folder; got {output}")
    if endings and (not name.endswith(endings) or name.endswith(".weights.h5")):
        exception = " (.weights.h5 is another format)" if name.endswith(".weights.h5") else ""
        raise InputError(
            f"the output for {library} must end with {' or '.join(endings)}{exception}; got {output}"
        )
    channels = spec.input_shape[2]
    if library in ("torchvision", "keras_applications") and channels != 3:
        raise InputError(f"the networks of {library} take RGB images; this one takes {channels} channels")
    name_in(library, spec)


def name_in(library: str, spec: ModelSpec) -> str:
    """Returns the name of a network in a library; raises `InputError` if it is not there."""
    if library == "keras_applications":
        return applications_model(spec.config)
    if library == "huggingface":
        return timm_config(spec)["architecture"]
    return torch_model(spec.config, library)


def write_weights(
    model: keras.Model,
    spec: ModelSpec,
    library: str,
    output: str | os.PathLike,
    license: str | None = None,
    origin: PretrainedWeights | None = None,
) -> None:
    """Writes the weights of a network in the format of a library, atomically.

    Args:
        model: built by `spec.build`.
        library: torchvision, timm, keras_applications or huggingface.
        license: the Hugging Face Hub's identifier, for the model card. Default: that of `origin`, or unknown.
        origin: the published weights, if they are these.

    Raises:
        InputError: see `check_writable`; or a package that the format needs is not installed.
        OSError: the output cannot be written.
    """
    check_writable(library, spec, output)
    path = Path(output)
    if library == "keras_applications":
        return write_applications(collect_tensors(model, applications_names(spec.config)), path, spec)
    tensors = collect_tensors(model, torch_names(spec.config))
    if library == "huggingface":
        license = license_id(license or (UNKNOWN if origin is None else origin.license))
        return write_folder(tensors, path, spec, license, origin)
    return write_torch_file(tensors, path, spec)
