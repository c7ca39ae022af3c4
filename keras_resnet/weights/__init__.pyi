"""The public names, as tools read them and `lazy_loader` imports them."""

from .labels import decode_predictions as decode_predictions
from .native import load_weights as load_weights
from .native import read_spec as read_spec
from .native import save_weights as save_weights
from .registry import PretrainedWeights as PretrainedWeights
from .registry import get_entry as get_entry
from .registry import list_weights as list_weights
from .spec import ModelSpec as ModelSpec
from .torch_files import torch_names as torch_names
from .weight_file import WeightFile as WeightFile
from .weight_file import open_weights as open_weights
from .weight_file import preprocess_input as preprocess_input
from .weight_file import preprocessing_of as preprocessing_of
from .writers import write_weights as write_weights
