"""The pages of the API reference: every public name, grouped by the module that defines it."""

import ast
import dataclasses
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


OVERVIEW = """\
# API reference

The public names of each package, with their docstrings. `import keras_resnet` itself imports neither Keras
nor TensorFlow. Invalid arguments raise [`InputError`][keras_resnet.InputError].
"""
WITHOUT_VALUE = {"ARTIFACTS", "FORMATS", "MODELS", "PROTOCOLS"}  # computed from private names
NETWORKS = "Each function takes the arguments of [`build_model`][keras_resnet.build_model] after its name."


@dataclasses.dataclass(frozen=True)
class Page:
    """A page of the reference.

    Attributes:
        package: whose public names it describes.
        sections: for each heading, the modules whose names it takes, relative to the package. A name of one
            of these modules, such as "applications.build_model", comes before the module itself.
        text: the introduction, in Markdown.
    """

    title: str
    package: str
    text: str
    sections: Mapping[str, tuple[str, ...]]

    @property
    def path(self) -> str:
        """The page's file, relative to docs/."""
        return f"api/{self.title.lower().replace(' ', '_')}.md"


PAGES = (
    Page(
        "Building models",
        "keras_resnet",
        "Networks are functional `keras.Model`s. The names on this page are attributes of `keras_resnet`. "
        "The [guide](../guide.md#models) introduces them; [Models](../models.md) compares the networks.",
        {
            "Build by name": (
                "applications.build_model",
                "applications.build_resnet",
                "models.config.list_models",
            ),
            "Networks": ("applications",),
            "Configuration": ("models.config",),
            "Feature maps": ("models.features",),
            "Complexity": ("models.complexity",),
            "Saved models": ("models.layers",),
            "Errors and version": ("errors", "version"),
        },
    ),
    Page(
        "Preprocessing and pretrained weights",
        "keras_resnet",
        "The names on this page are attributes of `keras_resnet`. See the "
        "[guide](../guide.md#pretrained-weights).",
        {
            "Published weights": ("weights.registry",),
            "Preprocessing": ("images.preprocessing", "weights.weight_file"),
            "Predictions": ("weights.labels",),
        },
    ),
    Page(
        "Weight files",
        "keras_resnet.weights",
        "Reads and writes `.weights.h5` files, and reads those of torchvision, timm and keras.applications. "
        "Nothing in a file is executed.",
        {
            "Open any file": ("weight_file",),
            "Native files": ("native", "spec"),
            "Other libraries": ("writers", "torch_files"),
        },
    ),
    Page(
        "Data",
        "keras_resnet.data",
        "Datasets by name, and reproducible `tf.data` pipelines.",
        {
            "Datasets": ("records", "sources", "examples", "digits", "conversion"),
            "Pipelines": ("pipeline",),
            "Augmentation": ("augmentation",),
        },
    ),
    Page(
        "Training",
        "keras_resnet.training",
        "The training loop of classifiers and detectors, which depends on neither. Call it to train a task "
        "of your own; [`keras_resnet.classification.train`][] and [`keras_resnet.detection.train`][] train "
        "classifiers and detectors.",
        {
            "Train": ("loop", "recipe", "options"),
            "Tasks": ("task",),
            "Trackers": ("trackers",),
            "Interruptions": ("cluster", "sigterm"),
        },
    ),
    Page(
        "Classification",
        "keras_resnet.classification",
        "Recipes, training, and evaluation with the paper's test protocols.",
        {
            "Train": ("recipe", "task"),
            "Evaluate": ("evaluation", "evaluated_model", "metrics", "protocols"),
            "Report": ("report",),
        },
    ),
    Page(
        "Detection",
        "keras_resnet.detection",
        "Faster R-CNN and RetinaNet. See the guide to [object detection](../detection.md).",
        {
            "Detectors": ("detector", "config", "detections", "improvements"),
            "Weights": ("registry", "weight_files"),
            "Datasets": ("data",),
            "Train": ("recipe", "task"),
            "Evaluate": ("evaluation", "metrics", "report"),
            "Export": ("export",),
        },
    ),
    Page(
        "Export",
        "keras_resnet.export",
        "Writes SavedModel, TFLite and ONNX files that are compared with the Keras model. "
        "[Deployment](../deploy.md) shows how to run them.",
        {
            "Export and verify": ("pipeline", "request"),
            "Results": ("report", "verification"),
            "One format": ("serving", "writers"),
            "Formats": ("artifacts",),
        },
    ),
)


def public_names(package: str) -> dict[str, str]:
    """Returns each public name of a package with the path of its definition, such as "weights.labels.X"."""
    stub = ROOT.joinpath(*package.split("."), "__init__.pyi")
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def networks() -> dict[str, str]:
    """Returns the functions that build a network of the zoo, each with the name of the network."""
    tree = ast.parse((ROOT / "keras_resnet" / "applications.py").read_text())
    return {
        node.targets[0].id: node.value.args[2].value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "_named"
    }


def sorted_into_sections() -> dict[str, dict[str, list[str]]]:
    """Returns the names of each section, by the title of the page.

    Raises:
        ValueError: a public name has no section, or a section has no names.
    """
    found = {page.title: {heading: {} for heading in page.sections} for page in PAGES}
    described = set()
    for package in dict.fromkeys(page.package for page in PAGES):
        places = {
            module: (page.title, heading, position)
            for page in PAGES
            if page.package == package
            for heading, modules in page.sections.items()
            for position, module in enumerate(modules)
        }
        for name, definition in public_names(package).items():
            full = f"{package}.{definition}"
            if full in described:  # on a page of the package above
                continue
            described.add(full)
            module = definition
            while module and module not in places:
                module = module.rpartition(".")[0]
            if not module:
                raise ValueError(f"{package}.{name} has no section in docs/api_reference.py")
            title, heading, position = places[module]
            found[title][heading][name] = position
    empty = [
        f"{title}: {heading}" for title, names in found.items() for heading in names if not names[heading]
    ]
    if empty:
        raise ValueError(f"sections without names in docs/api_reference.py: {', '.join(empty)}")
    # In a section, in the order of its modules.
    return {
        title: {heading: sorted(names, key=names.__getitem__) for heading, names in sections.items()}
        for title, sections in found.items()
    }


def pages() -> dict[str, str]:
    """Returns the text of each page of the reference, with its path in docs/."""
    sections = sorted_into_sections()
    return {"api/index.md": _overview(), **{page.path: _text(page, sections[page.title]) for page in PAGES}}


def _overview() -> str:
    rows = [f"| [{page.title}]({page.path.removeprefix('api/')}) | `{page.package}` |" for page in PAGES]
    return "\n".join([OVERVIEW, "| page | package |", "|---|---|", *rows, ""])


def _text(page: Page, sections: Mapping[str, list[str]]) -> str:
    lines = [f"# {page.title}", "", page.text, ""]
    for heading, names in sections.items():
        lines += [f"## {heading}", ""]
        if heading == "Networks":
            lines += _network_table(names)
        else:
            for name in names:
                lines.append(f"::: {page.package}.{name}")
                if name in WITHOUT_VALUE:
                    lines += ["    options:", "      show_attribute_values: false"]
        lines.append("")
    return "\n".join(lines)


def _network_table(names: list[str]) -> list[str]:
    """A row per function: all have the same arguments."""
    known = networks()
    rows = [f"| `{name}`{{#keras_resnet.{name}}} | `{known[name]}` |" for name in names]
    return [NETWORKS, "", "| function | network |", "|---|---|", *rows]
