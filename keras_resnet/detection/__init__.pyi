"""The public names, as tools read them and `lazy_loader` imports them."""

from .data.annotations import DetectionDataset as DetectionDataset
from .data.annotations import DetectionSplit as DetectionSplit
from .data.annotations import Objects as Objects
from .data.sources import open_detection_dataset as open_detection_dataset
