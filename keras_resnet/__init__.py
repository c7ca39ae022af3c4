"""Every network of "Deep Residual Learning for Image Recognition" as a plain Keras 3 model.

The names are imported on first use: `import keras_resnet` loads neither Keras nor TensorFlow.
"""

import lazy_loader

from keras_resnet.deprecation import with_old_names

_find, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = with_old_names(__name__, _find)
