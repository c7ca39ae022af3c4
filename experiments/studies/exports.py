"""Trained networks of the ladder as files for deployment: what the formats and int8 cost."""

import json
import os
from collections.abc import Sequence

from experiments.claims import Claim
from experiments.experiment import Experiment, Groups, diverged
from experiments.page import Part, Table
from experiments.runs import Outcome, Run, ladder_run
from experiments.settings import Setting
from keras_resnet.export import ExportReport
from keras_resnet.export.pipeline import export
from keras_resnet.export.report import PARITY, percent
from keras_resnet.export.request import ExportRequest

_FORMATS, _PRECISIONS = "saved_model,tflite,onnx", "float32,int8"


def report(setting: Setting, runs: Groups) -> tuple[list[Claim], list[Part]]:
    """Exports each network, verifies the files on all test images, and compares their accuracies."""
    rows: list[list[str]] = []
    images = ""
    for (outcome,) in runs.values():
        if outcome.failure is None:
            exported = _exported(setting, outcome)
            images = f"{exported.images:,} images, {exported.images_from}"
            rows += _rows(outcome, exported)
    header = ["network", "file", "size", "test error, %", "same class as Keras", "largest difference", ""]
    body: list[Part] = [
        "The first seed's smallest and deepest residual network of the ladder, exported by `python -m "
        "keras_resnet export` in float32 and int8. Each file runs in its own runtime and is compared with "
        'the Keras model: "equal" in float32, "close" if int8 keeps the accuracy, "worse" if it loses more '
        "than a point. Differences are those of logits.",
    ]
    if rows:
        body.append(Table(header, rows, f"Verified on {images}."))
    return [], body + diverged(runs, "are not exported")


def _exported(setting: Setting, outcome: Outcome) -> ExportReport:
    """The report of the export beside the run; made once."""
    path = outcome.folder.path / "export" / PARITY
    if path.exists():
        return ExportReport.from_json(json.loads(path.read_text()))
    request = ExportRequest(
        workdir=os.fspath(outcome.folder.path),
        formats=_FORMATS,
        precision=_PRECISIONS,
        data_dir=setting.data_dir,
    )
    return export(request)


def _rows(outcome: Outcome, exported: ExportReport) -> list[list[str]]:
    name = f"ResNet-{outcome.run.layers}"
    rows = [[name, "Keras", "", _error(exported.top1), "", "", ""]]
    for key, artifact in exported.formats.items():
        rows.append(
            [
                name,
                exported.files.get(key, key),
                f"{artifact.bytes / 1e6:.2f} MB",
                _error(artifact.top1),
                percent(artifact.top1_agreement),
                artifact.difference_text,
                artifact.verdict,
            ]
        )
    return rows


def _error(top1: float | None) -> str:
    return "-" if top1 is None else f"{100 - 100 * top1:.2f}"


def _runs(setting: Setting) -> dict[int, Sequence[Run]]:
    """The first seed of the smallest and of the deepest residual network."""
    depths = dict.fromkeys((setting.depths[0], setting.depths[-1]))
    return {depth: [ladder_run(setting, "resnet", depth, setting.first_seed)] for depth in depths}


EXPERIMENT = Experiment(
    name="exports",
    title="The trained networks as files",
    intro="What the exported files of two networks of this page are worth: their accuracy on all test "
    "images, in the runtimes that people deploy.",
    runs=_runs,
    report=report,
)
