"""Writes the model card, which describes the exported files of a detector."""

from pathlib import Path

from keras_resnet.detection.export.report import (
    COMPARISON,
    NOTHING_FOUND,
    DetectorExportReport,
    comparison_rows,
)
from keras_resnet.detection.export.request import DetectorExportRequest, DetectorSource
from keras_resnet.export.artifacts import ARTIFACTS
from keras_resnet.export.model_card import read_template, recipe_rows
from keras_resnet.export.report import percent
from keras_resnet.tables import markdown_table

_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")


def model_card(
    source: DetectorSource, report: DetectorExportReport, request: DetectorExportRequest, picture: str
) -> str:
    """Returns the card as Markdown.

    Args:
        picture: file name of the picture of detections.
    """
    paths: dict[str, list[str]] = {}
    for name, file in report.formats.items():
        if file.equal:  # no code for files that are not published
            paths.setdefault(ARTIFACTS[name].format, []).append(report.files[name])
    return read_template(_TEMPLATE).render(
        config=source.detector.config,
        report=report,
        command=request.command,
        io_dtype=request.io_dtype,
        picture=picture,
        origin=source.origin,
        paths=paths,
        table=markdown_table,
        percent=percent,
        recipe_rows=recipe_rows(source.recipe) if source.recipe else None,
        file_rows=[
            [f"`{report.files[name]}`", f"{file.bytes:,}", f"`{file.sha256}`"]
            for name, file in report.formats.items()
        ],
        openvino=any(file.openvino is not None for file in report.formats.values()),
        comparison=COMPARISON,
        note=NOTHING_FOUND if report.nothing_found else "",
        comparison_rows=comparison_rows(report),
        versions=", ".join(
            sorted({found.version for file in report.formats.values() for _, found in file.runs})
        ),
    )
