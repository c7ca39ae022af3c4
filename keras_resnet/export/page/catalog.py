"""Finds exported classifiers with ONNX files, and describes them for the page."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_resnet.errors import InputError
from keras_resnet.export.artifacts import ARTIFACTS
from keras_resnet.export.report import PARITY, SAMPLES, ExportReport


@dataclasses.dataclass(frozen=True)
class ExportedNetwork:
    """An export of a classifier: its folder, and the report in it."""

    folder: Path
    report: ExportReport

    @property
    def files(self) -> dict[str, Path]:
        """The published ONNX files, by keys of `ARTIFACTS`."""
        paths = {
            name: self.folder / kind.file_name
            for name, kind in ARTIFACTS.items()
            if kind.format == "onnx" and name in self.report.formats and self.report.formats[name].equal
        }
        return {name: path for name, path in paths.items() if path.is_file()}

    @property
    def samples(self) -> Path | None:
        """The picture of sample images, if the export has one."""
        path = self.folder / SAMPLES
        return path if path.is_file() else None


def find_networks(folder: str | Path) -> list[ExportedNetwork]:
    """Finds the exports in a folder: its own, a run's, or those in its subfolders, sorted by name.

    Raises:
        InputError: there is no such folder, or no export of a classifier with ONNX files in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give that of a run or of exports")
    places = [place for place in (folder, folder / "export") if (place / PARITY).is_file()][:1]
    places = places or sorted(path.parent for path in folder.glob(f"*/{PARITY}"))
    if not places:
        raise InputError(f"{folder} holds no export (no {PARITY}); give the folder of a run or of exports")
    exported = [ExportedNetwork(place, report) for place in places if (report := _read_report(place))]
    found = [network for network in exported if network.files]
    if not found:
        raise InputError(f"{folder} holds no ONNX file of a classifier; export one with --formats=onnx")
    return found


def describe(networks: Sequence[ExportedNetwork]) -> tuple[list[dict[str, Any]], dict[str, Path]]:
    """Returns the JSON values that the page reads, and the files that they refer to, by URL."""
    entries: list[dict[str, Any]] = []
    paths: dict[str, Path] = {}
    for index, network in enumerate(networks):
        report, base = network.report, f"networks/{index}"
        entry: dict[str, Any] = {
            "name": report.model,
            "parameters": report.parameters,
            "multiply_adds": report.multiply_adds,
            "top1": report.top1,
            "images_from": report.images_from,
            "input_shape": report.input_shape,
            "resize": report.resize,
            "interpolation": report.interpolation,
            "samples": None,
            "files": [],
        }
        for name, path in network.files.items():
            artifact, url = report.formats[name], f"{base}/{path.name}"
            paths[url] = path
            entry["files"].append(
                {
                    "url": url,
                    "precision": ARTIFACTS[name].precision,
                    "bytes": path.stat().st_size,
                    "top1": artifact.top1,
                    "latency": artifact.latency.get("1"),
                }
            )
        if (samples := network.samples) and report.input_shape:
            url = f"{base}/{samples.name}"
            paths[url] = samples
            width, labels = report.input_shape[1], list(report.sample_labels)
            entry["samples"] = {"url": url, "width": width, "labels": labels}
        entries.append(entry)
    return entries, paths


def _read_report(folder: Path) -> ExportReport | None:
    """Returns the report of an export; None if it cannot be read or is that of a detector."""
    try:
        report = ExportReport.from_json(json.loads((folder / PARITY).read_text("utf-8")))
        return report if _can_be_shown(report) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _can_be_shown(report: ExportReport) -> bool:
    """Whether the values for the page have their types, and numbers are finite, as JSON requires."""
    shape, artifacts = tuple(report.input_shape or (0, 0, 0)), report.formats.values()
    counts = [report.parameters, report.multiply_adds, report.resize, *report.sample_labels, *shape]
    shares = [report.top1, *(each.top1 for each in artifacts)]
    times = [each.latency.get("1") for each in artifacts]
    texts = [report.model, report.images_from, report.interpolation]
    return (
        all(isinstance(text, str) for text in texts)
        and all(count is None or isinstance(count, int) for count in counts)
        and all(value is None or math.isfinite(value) for value in (*shares, *times))
        and len(shape) == 3
    )
