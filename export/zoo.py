"""Exports the whole zoo to verified artifacts, with an index of their sizes and speeds."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from keras_resnet import files
from keras_resnet.errors import InputError
from keras_resnet.export.artifacts import FORMATS, Options
from keras_resnet.export.pipeline import export_weights
from keras_resnet.export.report import PARITY, ExportReport
from keras_resnet.export.request import MAX_TOP1_DROP, ExportRequest
from keras_resnet.models.config import list_models
from keras_resnet.tables import markdown_table


def export_zoo(
    weights: str | Path,
    formats: str | Iterable[str] = FORMATS,
    output_dir: str | Path | None = None,
    precision: str | Iterable[str] = "float32",
    options: Options | None = None,
    models: Iterable[str] | None = None,
    max_top1_drop: float = MAX_TOP1_DROP,
    strict: bool = False,
    **more: Any,
) -> bool:
    """Exports the networks one by one; skips those that an earlier call has exported.

    See `export_weights` for the other arguments and errors.

    Args:
        weights: "none" for random weights, or a folder of files `MODEL.weights.h5`; networks without a
            file are skipped.
        output_dir: default `exported`. Each network has its own folder in it; `index.json` and `index.md`
            list the networks with parameters, multiply-adds, and size and latency by format.
        models: names of networks. Default: the whole zoo.

    Returns:
        Whether all artifacts equal their models and, if `strict`, none is worse.

    Raises:
        InputError: the folder of the weights is missing or holds no weights, or an option does not apply to
            the formats.
    """
    # Before the first of many networks.
    request = ExportRequest(
        formats=formats,
        precision=precision,
        output_dir=output_dir,
        options=options or Options(),
        max_top1_drop=max_top1_drop,
        **more,
    )
    artifacts = request.artifacts
    output_dir = Path(output_dir or "exported")
    for name, mark in (("index.json", b'"networks"'), ("index.md", b"# Exported networks")):
        files.check_replaceable(output_dir / name, files.starts_with(mark))
    sources = _sources(weights, list_models() if models is None else models)
    reports = {}
    for number, (model, source) in enumerate(sources.items(), 1):
        folder = output_dir / model
        asked = {
            "weights": "none" if source == "none" else files.sha256(source),
            "options": (options or Options()).choices | more,
        }
        report = _finished(folder, artifacts, asked)
        print(f"[{number}/{len(sources)}] {model}{': done before' if report else ''}", flush=True)
        if report is None:
            given: dict[str, Any] = {"formats": formats, "precision": precision, "options": options, **more}
            given["max_top1_drop"] = max_top1_drop
            export_weights(model, source, output_dir=folder, **given)
            report = json.loads((folder / PARITY).read_text()) | {"asked": asked}
            files.write_json(folder / PARITY, report)
        for entry in report["formats"].values():
            entry["max_top1_drop"] = max_top1_drop / 100  # an earlier call may have allowed another drop
        reports[model] = report
        # After each network, so that an interrupted call leaves an index, too.
        _write_index(output_dir, reports, artifacts)
    return all(ExportReport.from_json(report).passes(strict) for report in reports.values())


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
    """Returns the report of an earlier call with the same arguments, if its files are unchanged."""
    try:
        report = json.loads((folder / PARITY).read_text())
        earlier = report["asked"]
        # The first edition stored further options.
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
