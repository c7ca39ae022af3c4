"""Writes the model card, which describes the exported files of a detector."""

from collections.abc import Mapping
from pathlib import Path

from keras_resnet.detection.detector import Detector
from keras_resnet.detection.export.report import COMPARISON, DetectorExportReport, comparison_rows
from keras_resnet.detection.weight_files import DetectorWeights
from keras_resnet.export.artifacts import ARTIFACTS
from keras_resnet.export.model_card import read_template, recipe_rows
from keras_resnet.export.report import percent
from keras_resnet.tables import markdown_table

_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")


def model_card(
    detector: Detector,
    report: DetectorExportReport,
    recipe: Mapping | None,
    command: str,
    picture: str,
    origin: DetectorWeights | None,
) -> str:
    """Returns the card as Markdown.

    Args:
        recipe: content of the run's `recipe.json`; None if the training is unknown.
        command: the command that repeats the export.
        picture: file name of the picture of detections.
        origin: the weight file, if it is not of this package.
    """
    paths: dict[str, list[str]] = {}
    for name, file in report.formats.items():
        if file.equal:  # no code for files that are not published
            paths.setdefault(ARTIFACTS[name].format, []).append(report.files[name])
    return read_template(_TEMPLATE).render(
        config=detector.config,
        report=report,
        command=command,
        picture=picture,
        origin=origin,
        paths=paths,
        table=markdown_table,
        percent=percent,
        recipe_rows=recipe_rows(recipe) if recipe else None,
        file_rows=[
            [f"`{report.files[name]}`", f"{file.bytes:,}", f"`{file.sha256}`"]
            for name, file in report.formats.items()
        ],
        comparison=COMPARISON,
        comparison_rows=comparison_rows(report),
        versions=", ".join(
            sorted({found.version for file in report.formats.values() for _, found in file.runs})
        ),
    )
