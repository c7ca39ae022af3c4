"""Every network of "Deep Residual Learning for Image Recognition" as a plain Keras 3 model."""

from keras_resnet.errors import InputError
from keras_resnet.images.preprocessing import Normalization, Preprocessing
from keras_resnet.models.complexity import Complexity, complexity
from keras_resnet.models.config import MODELS, ResNetConfig, list_models
from keras_resnet.models.resnet import BUILDERS, build_model, build_resnet, feature_maps, freeze
from keras_resnet.version import __version__
from keras_resnet.weights import (
    PretrainedWeights,
    decode_predictions,
    get_entry,
    list_weights,
    preprocess_input,
)

Entry = PretrainedWeights  # its name in the first edition

# ResNet18 ... ResNet152, ResNet50V1_5 ..., ResNeXt50_32x4d ..., CifarResNet20 ..., CifarPlainNet20 ...
globals().update(BUILDERS)

__all__ = [
    "MODELS",
    "Complexity",
    "Entry",
    "InputError",
    "Normalization",
    "PretrainedWeights",
    "Preprocessing",
    "ResNetConfig",
    "__version__",
    "build_model",
    "build_resnet",
    "complexity",
    "decode_predictions",
    "feature_maps",
    "freeze",
    "get_entry",
    "list_models",
    "list_weights",
    "preprocess_input",
    *BUILDERS,
]
