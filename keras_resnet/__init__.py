"""Every network of "Deep Residual Learning for Image Recognition" as a plain Keras 3 model."""

from keras_resnet.complexity import Complexity, complexity
from keras_resnet.config import MODELS, ResNetConfig, list_models
from keras_resnet.errors import InputError
from keras_resnet.resnet import BUILDERS, build_model, build_resnet, feature_maps
from keras_resnet.version import __version__

# ResNet18 ... ResNet152, ResNet50V1_5 ..., PlainNet18, CifarResNet20 ..., CifarPlainNet20 ...
globals().update(BUILDERS)

__all__ = [
    "MODELS",
    "Complexity",
    "InputError",
    "ResNetConfig",
    "__version__",
    "build_model",
    "build_resnet",
    "complexity",
    "feature_maps",
    "list_models",
    *BUILDERS,
]
