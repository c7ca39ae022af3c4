"""Every network of "Deep Residual Learning for Image Recognition" as a plain Keras 3 model.

The names are imported on first use: `import keras_resnet` loads neither Keras nor TensorFlow.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
