"""Every network of the zoo as verified artifacts, with an index of their sizes and speeds."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from keras_resnet import files
from keras_resnet.errors import InputError
from keras_resnet.export.artifacts import FORMATS, Options, check_formats
from keras_resnet.export.pipeline import PARITY, export_weights
from keras_resnet.export.report import ExportReport
from keras_resnet.models.config import list_models
from keras_resnet.tables import markdown_table


def export_zoo(
    weights: str | Path,
    formats: str | Iterable[str] = FORMATS,
    output_dir: str | Path | None = None,
    precision: str | Iterable[str] = "float32",
    options: Options | None = None,
    models: Iterable[str] | None = None,
    **more: Any,
) -> bool:
    """Exports one network after the other, and resumes where an earlier call stopped.

    Args:
        weights: "none" for random weights, or a folder of files `MODEL.weights.h5`; networks without a
            file are skipped.
        formats: names of `FORMATS`.
        output_dir: default `exported`. Each network gets a folder of its name in it; `index.json` and
            `index.md` list them with parameters, multiply-adds, and size and latency by format.
        precision: names of `PRECISIONS`.
        options: for the artifacts.
        models: names, instead of the whole zoo.
        **more: see `export_weights`.

    Returns:
        Whether all artifacts equal their models.

    Raises:
        InputError: there is no such folder, or no weights in it; and as `export_weights`.
    """
    artifacts = check_formats(formats, precision)
    output_dir = Path(output_dir or "exported")
    for name, mark in (("index.json", b'"networks"'), ("index.md", b"# Exported networks")):
        if os.path.lexists(output_dir / name) and not files.starts_with(mark)(output_dir / name):
            raise InputError(f"{output_dir / name} exists and was not written by an export; move it")
    sources = _sources(weights, list_models() if models is None else models)
    reports = {}
    for number, (model, source) in enumerate(sources.items(), 1):
        asked = {
            "weights": "none" if source == "none" else files.sha256(source),
            "options": (options or Options()).choices | more,
        }
        report = _finished(output_dir / model, artifacts, asked)
        if report is None:
            print(f"[{number}/{len(sources)}] {model}", flush=True)
            export_weights(
                model,
                source,
                formats=formats,
                output_dir=output_dir / model,
                precision=precision,
                options=options,
                **more,
            )
            report = json.loads((output_dir / model / PARITY).read_text()) | {"asked": asked}
            files.write_json(output_dir / model / PARITY, report)
        else:
            print(f"[{number}/{len(sources)}] {model}: done before", flush=True)
        reports[model] = report
        # After each network, so that a stopped call leaves an index of what exists.
        _write_index(output_dir, reports, artifacts)
    return all(report["equal"] for report in reports.values())


def _sources(weights: str | Path, models: Iterable[str]) -> Mapping[str, str | Path]:
    if str(weights) == "none":
        return dict.fromkeys(models, "none")
    folder = Path(weights)
    if not folder.is_dir():
        raise InputError(f"with --model=all, --weights is none or a folder; {weights} is neither")
    found = {model: folder / f"{model}.weights.h5" for model in models}
    found = {model: path for model, path in found.items() if path.is_file()}
    if not found:
        raise InputError(f"{folder} holds no file like resnet50.weights.h5")
    return found


def _finished(folder: Path, artifacts: tuple[str, ...], asked: dict) -> dict | None:
    """Returns the report of an earlier call if it was asked for the same, and all its files still exist."""
    try:
        report = json.loads((folder / PARITY).read_text())
        earlier = report["asked"]
        # The first edition recorded more options than can be chosen.
        options = {name: earlier["options"].get(name) for name in asked["options"]}
        is_whole = (tuple(report["formats"]), {**earlier, "options": options}) == (artifacts, asked) and all(
            files.sha256(folder / report["files"][name]) == report["formats"][name]["sha256"]
            for name in artifacts
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return report if is_whole else None


def _write_index(output_dir: Path, reports: dict[str, dict], artifacts: tuple[str, ...]) -> None:
    rows, entries = [], []
    for model, values in reports.items():
        report = ExportReport.from_json(values)
        keys = ("bytes", "sha256", "latency", "peak_memory", "equal")
        formats = {
            name: {"file": f"{model}/{report.files[name]}"}
            | {key: values["formats"][name].get(key) for key in keys}
            for name in artifacts
        }
        entries.append(
            {key: values[key] for key in ("model", "parameters", "multiply_adds", "top1")}
            | {"weights": values["asked"]["weights"], "formats": formats}
        )
        row = [model, f"{report.parameters:,}", f"{report.multiply_adds:,}"]
        for name in artifacts:
            one, many, _ = report.formats[name].latency_texts
            row += [f"{report.formats[name].bytes / 1e6:.1f} MB", one, many]
        rows.append(row)
    header = ["network", "parameters", "multiply-adds"]
    for name in artifacts:
        header += [name, "batch 1", "batch 32"]
    files.write_json(output_dir / "index.json", {"networks": entries})
    text = markdown_table(header, rows)
    files.write_text(output_dir / "index.md", f"# Exported networks\n\n{text}\n")
