"""The public names, as tools read them and `lazy_loader` imports them."""

from .cluster import LostWorker as LostWorker
from .loop import TrainingFailed as TrainingFailed
from .loop import train as train
from .options import PRECISIONS as PRECISIONS
from .options import RunOptions as RunOptions
from .recipe import Recipe as Recipe
from .sigterm import Preempted as Preempted
from .task import Curve as Curve
from .task import Task as Task
from .trackers import Tracker as Tracker
