"""The public names, as tools read them and `lazy_loader` imports them."""

from .config import DetectorConfig as DetectorConfig
from .config import get_detector_config as get_detector_config
from .config import list_detectors as list_detectors
from .data.annotations import DetectionDataset as DetectionDataset
from .data.annotations import DetectionSplit as DetectionSplit
from .data.annotations import Objects as Objects
from .data.augmentation import DetectionAugmentation as DetectionAugmentation
from .data.augmentation import augment_example as augment_example
from .data.sources import open_detection_dataset as open_detection_dataset
from .detections import Detections as Detections
from .detector import Detector as Detector
from .detector import build_detector as build_detector
from .detector import load_detector as load_detector
from .evaluation import DetectionEvaluation as DetectionEvaluation
from .evaluation import evaluate as evaluate
from .metrics import CocoStatistics as CocoStatistics
from .metrics import coco_statistics as coco_statistics
from .metrics import voc_average_precision as voc_average_precision
from .registry import PretrainedDetector as PretrainedDetector
from .registry import coco_class_names as coco_class_names
from .registry import list_detector_weights as list_detector_weights
from .report import table as table
from .report import write_report as write_report
from .weight_files import load_detector_weights as load_detector_weights
from .weight_files import read_detector_spec as read_detector_spec
