"""The feature maps of a network, with their channels and strides; freezing the layers before one."""

import dataclasses
import re
from collections.abc import Sequence

import keras

from keras_resnet.errors import InputError
from keras_resnet.models.blocks import channel_axis
from keras_resnet.models.graph import layer_calls, recursion_limit, tensor_key

_STRIDED = (keras.layers.Conv2D, keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)


@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """The output of the stem or of a stage.

    `tensor` is (batch, height, width, channels), or channels first; `stride` is the size of the input over
    the size of the map.
    """

    tensor: keras.KerasTensor
    channels: int
    stride: int


def feature_info(model: keras.Model) -> dict[str, FeatureMap]:
    """Returns the feature maps by their usual names: C1 (the stem's convolutions), C2, C3, ...

    With the ImageNet stem C1 ... C5 have strides 2, 4, 8, 16, 32; with the CIFAR stem C1 ... C4 have
    strides 1, 1, 2, 4. In a pre-activation network a map is the last activation of its resolution. Models
    without the layer names of this package's networks raise `InputError`.
    """
    maps, names = {}, [layer.name for layer in model.layers]
    # Pre-activation blocks end in sums without an activation, and a stage's last block has the stride.
    ending = "preact_relu" if any(name.endswith("_preact_relu") for name in names) else "out"
    for layer in model.layers:
        if layer.name.startswith("conv1_"):
            maps["C1"] = layer.output
        elif match := re.fullmatch(rf"conv(\d+)_block\d+_{ending}", layer.name):
            maps[f"C{match[1]}"] = layer.output
    if not maps:
        raise InputError(f"model {model.name!r} has no stages named conv2_block1_out, ...")
    if "post_relu" in names:
        maps[list(maps)[-1]] = model.get_layer("post_relu").output
    strides = _strides(maps.values())
    return {
        name: FeatureMap(tensor, tensor.shape[channel_axis()], strides[tensor_key(tensor)])
        for name, tensor in maps.items()
    }


def _strides(outputs) -> dict[tuple, int]:
    """Returns the stride of every tensor that `outputs` depend on, by its key."""
    strides = {}
    for call in layer_calls(outputs):
        own = call.layer.strides[0] if isinstance(call.layer, _STRIDED) else 1
        before = max((strides[tensor_key(tensor)] for tensor in call.inputs), default=1)
        strides.update((tensor_key(tensor), own * before) for tensor in call.outputs)
    return strides


def feature_maps(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """Returns the output of each stage, `{"C2": tensor, ..., "C5": tensor}`; see `feature_info`.

    `keras.Model(model.input, feature_maps(model))` is a feature extractor.
    """
    maps = {name: info.tensor for name, info in feature_info(model).items() if name != "C1"}
    if not maps:
        raise InputError(f"model {model.name!r} has no stages named conv2_block1_out, ...")
    return maps


def extract_features(model: keras.Model, out_indices: Sequence[int] | None = None) -> keras.Model:
    """Returns a model of the same layers whose output is a dictionary of feature maps.

    `out_indices` selects maps, 0 for C1, 1 for C2, ..., and removes the layers after the last of them; None
    selects all.
    """
    maps = {name: info.tensor for name, info in feature_info(model).items()}
    names = list(maps)
    if out_indices is not None:
        indices = list(out_indices) if isinstance(out_indices, Sequence) else [out_indices]
        valid = all(isinstance(i, int) and -len(names) <= i < len(names) for i in indices)
        if not valid or not indices or len({i % len(names) for i in indices}) < len(indices):
            raise InputError(
                f"out_indices must be different integers from 0 (C1) to {len(names) - 1} ({names[-1]}); "
                f"got {out_indices!r}"
            )
        maps = {names[i]: maps[names[i]] for i in indices}
    with recursion_limit():
        return keras.Model(model.input, maps, name=model.name)


def feature_maps_upto(model: keras.Model, upto: str | None) -> list[FeatureMap]:
    """Returns the feature maps from C1 to `upto`, none for None; `InputError` if there is no such map."""
    maps = feature_info(model)
    if upto is None:
        return []
    if not isinstance(upto, str) or upto not in maps:
        raise InputError(f"freeze takes one of {', '.join(maps)} or None; got {upto!r}")
    names = list(maps)
    return [maps[name] for name in names[: names.index(upto) + 1]]


def freeze(model: keras.Model, upto: str | None) -> keras.Model:
    """Freezes the layers that a feature map depends on and unfreezes all others; returns `model`.

    `upto` is the feature map, "C1" ... "C5"; None unfreezes the whole network. Frozen batch normalization
    stays in inference mode in training: it uses its moving statistics and does not update them.
    """
    # All maps up to it: the last stage of a detector has an input of its own.
    maps = feature_maps_upto(model, upto)
    frozen = {id(call.layer) for call in layer_calls([each.tensor for each in maps])}
    for layer in model.layers:
        layer.trainable = id(layer) not in frozen
    return model
