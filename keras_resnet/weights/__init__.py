"""Weight files: native `.weights.h5`, those of other libraries, and a table of published ones."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
