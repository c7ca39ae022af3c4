"""The public names, as tools read them and `lazy_loader` imports them."""

from .augmentation import AUGMENTATIONS as AUGMENTATIONS
from .augmentation import Augmentation as Augmentation
from .augmentation import get_augmentation as get_augmentation
from .conversion import convert as convert
from .digits import held_out as held_out
from .examples import BadImages as BadImages
from .pipeline import Transform as Transform
from .pipeline import dataset_statistics as dataset_statistics
from .pipeline import evaluation_batches as evaluation_batches
from .pipeline import raw_images as raw_images
from .pipeline import steps_per_epoch as steps_per_epoch
from .pipeline import training_batches as training_batches
from .records import open_tfrecords as open_tfrecords
from .sources import Dataset as Dataset
from .sources import IndexedSplit as IndexedSplit
from .sources import RecordSplit as RecordSplit
from .sources import Split as Split
from .sources import open_dataset as open_dataset
