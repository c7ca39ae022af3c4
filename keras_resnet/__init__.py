"""Every network of "Deep Residual Learning for Image Recognition" as a plain Keras 3 model.

The names are imported on first use: `import keras_resnet` loads neither Keras nor TensorFlow.
"""

from typing import TYPE_CHECKING

from keras_resnet import lazy
from keras_resnet.errors import InputError
from keras_resnet.version import __version__

if TYPE_CHECKING:
    from keras_resnet.applications import (
        CifarPlainNet20,
        CifarPlainNet32,
        CifarPlainNet44,
        CifarPlainNet56,
        CifarPlainNet110,
        CifarResNet20,
        CifarResNet32,
        CifarResNet44,
        CifarResNet56,
        CifarResNet110,
        CifarResNet1202,
        PlainNet18,
        PlainNet34,
        ResNet18,
        ResNet18D,
        ResNet34,
        ResNet34D,
        ResNet50,
        ResNet50D,
        ResNet50V1_5,
        ResNet50V2,
        ResNet101,
        ResNet101D,
        ResNet101V1_5,
        ResNet101V2,
        ResNet152,
        ResNet152D,
        ResNet152V1_5,
        ResNet152V2,
        ResNeXt50_32x4d,
        ResNeXt101_32x8d,
        ResNeXt101_64x4d,
        WideResNet50_2,
        WideResNet101_2,
        build_model,
        build_resnet,
    )
    from keras_resnet.images.preprocessing import (
        Normalization,
        Preprocessing,
    )
    from keras_resnet.models.complexity import (
        Complexity,
        complexity,
    )
    from keras_resnet.models.config import (
        MODELS,
        ResNetConfig,
        list_models,
    )
    from keras_resnet.models.features import (
        FeatureMap,
        extract_features,
        feature_info,
        feature_maps,
        freeze,
    )
    from keras_resnet.weights import (
        PretrainedWeights,
        decode_predictions,
        get_entry,
        list_weights,
        preprocess_input,
        preprocessing_of,
    )
    from keras_resnet.weights import PretrainedWeights as Entry

__all__ = [
    "MODELS",
    "CifarPlainNet20",
    "CifarPlainNet32",
    "CifarPlainNet44",
    "CifarPlainNet56",
    "CifarPlainNet110",
    "CifarResNet20",
    "CifarResNet32",
    "CifarResNet44",
    "CifarResNet56",
    "CifarResNet110",
    "CifarResNet1202",
    "Complexity",
    "Entry",
    "FeatureMap",
    "InputError",
    "Normalization",
    "PlainNet18",
    "PlainNet34",
    "Preprocessing",
    "PretrainedWeights",
    "ResNeXt50_32x4d",
    "ResNeXt101_32x8d",
    "ResNeXt101_64x4d",
    "ResNet18",
    "ResNet18D",
    "ResNet34",
    "ResNet34D",
    "ResNet50",
    "ResNet50D",
    "ResNet50V1_5",
    "ResNet50V2",
    "ResNet101",
    "ResNet101D",
    "ResNet101V1_5",
    "ResNet101V2",
    "ResNet152",
    "ResNet152D",
    "ResNet152V1_5",
    "ResNet152V2",
    "ResNetConfig",
    "WideResNet50_2",
    "WideResNet101_2",
    "__version__",
    "build_model",
    "build_resnet",
    "complexity",
    "decode_predictions",
    "extract_features",
    "feature_info",
    "feature_maps",
    "freeze",
    "get_entry",
    "list_models",
    "list_weights",
    "preprocess_input",
    "preprocessing_of",
]

_HOMES = {
    "images.preprocessing": ["Normalization", "Preprocessing"],
    "models.complexity": ["Complexity", "complexity"],
    "models.config": ["MODELS", "ResNetConfig", "list_models"],
    "models.features": ["FeatureMap", "extract_features", "feature_info", "feature_maps", "freeze"],
    "weights": [
        "PretrainedWeights",
        "decode_predictions",
        "get_entry",
        "list_weights",
        "preprocess_input",
        "preprocessing_of",
    ],
}
_elsewhere = {"Entry", "InputError", "__version__"}.union(*_HOMES.values())
_load = lazy.attach(__name__, {**_HOMES, "applications": [n for n in __all__ if n not in _elsewhere]})


if not TYPE_CHECKING:  # for tools, no other name exists

    def __getattr__(name: str) -> object:
        return _load("PretrainedWeights" if name == "Entry" else name)  # its name in the first edition


def __dir__() -> list[str]:
    return __all__
