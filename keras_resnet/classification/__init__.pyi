"""The public names, as tools read them and `lazy_loader` imports them."""

from .evaluated_model import EvaluatedModel as EvaluatedModel
from .evaluated_model import load_evaluated_model as load_evaluated_model
from .evaluation import Evaluation as Evaluation
from .evaluation import evaluate as evaluate
from .metrics import Metrics as Metrics
from .protocols import PROTOCOLS as PROTOCOLS
from .protocols import Protocol as Protocol
from .protocols import fully_convolutional as fully_convolutional
from .recipe import RECIPES as RECIPES
from .recipe import ClassificationRecipe as ClassificationRecipe
from .recipe import get_recipe as get_recipe
from .report import table as table
from .report import write_report as write_report
from .task import ClassificationTask as ClassificationTask
from .task import train as train
