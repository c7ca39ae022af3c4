"""Object detection. The operations on boxes know no network, no data and no training."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
