"""The public names, as tools read them and `lazy_loader` imports them."""

from .artifacts import ARTIFACTS as ARTIFACTS
from .artifacts import FORMATS as FORMATS
from .artifacts import Options as Options
from .artifacts import check_formats as check_formats
from .pipeline import export_and_verify as export_and_verify
from .pipeline import export_model as export_model
from .pipeline import export_weights as export_weights
from .pipeline import export_workdir as export_workdir
from .report import ArtifactReport as ArtifactReport
from .report import ExportReport as ExportReport
from .report import parity_table as parity_table
from .request import ExportRequest as ExportRequest
from .serving import serving_model as serving_model
from .verification import verify as verify
from .writers.onnx import to_onnx as to_onnx
from .writers.saved_model import to_saved_model as to_saved_model
from .writers.tflite import to_tflite as to_tflite
