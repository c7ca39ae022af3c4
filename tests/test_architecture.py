"""Every arrow goes one way: the import table of the design, held on the source text."""

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

import keras_resnet

ROOT = Path(keras_resnet.__file__).parents[1]
STANDARD = set(sys.stdlib_module_names)

# What each room may import of the project, besides itself and `errors`.
NETWORK = {"config", "layers", "blocks", "resnet", "complexity", "preprocessing"}
LIBRARY = NETWORK | {"weights", "cli", "tables", "version", "package"}
TRAINING = LIBRARY | {"data", "geometry"}
ROOMS = {
    "errors": set(),
    "version": set(),
    "tables": set(),
    "cli": set(),
    "config": set(),
    **{room: NETWORK for room in NETWORK - {"config"}},
    "package": NETWORK | {"weights", "tables", "version"},  # __init__ and __main__
    "weights": NETWORK | {"tables"},
    "geometry": set(),
    "data": {"preprocessing", "geometry", "tables"},
    "training": TRAINING,
    "evaluation": TRAINING | {"training"},
    "export": LIBRARY | {"geometry"},
    "train_main": None,  # None: anything
    "experiments": None,
    "benchmarks": None,
}
# The doors that open only when a function is called.
LAZY = {
    ("resnet", "weights"),
    ("keras_resnet.export.pipeline", "data"),
    ("export.__main__", "data"),
    ("keras_resnet.data.__main__", "training"),
    ("keras_resnet.data.__main__", "weights"),
}

# What each room may import from elsewhere; rooms not named here may import anything.
NUMERIC = {"keras", "numpy"}
PACKAGES = {
    "errors": set(),
    "version": set(),
    "tables": set(),
    "config": set(),
    "cli": {"absl"},
    **{room: NUMERIC for room in NETWORK - {"config"}},
    "package": NUMERIC,
    "weights": NUMERIC | {"h5py", "ml_dtypes"},
    "geometry": {"tensorflow"},
}
LAZY_PACKAGES = {"layers": {"tensorflow"}, "weights": {"torch", "safetensors"}}
# Only the functions that need these may import them.
NEVER_AT_IMPORT = {"matplotlib", "sklearn", "onnx", "onnxruntime", "ai_edge_litert", "torch", "safetensors"}


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module, in one place."""

    module: str  # that imports, e.g. "keras_resnet.weights.spec"
    target: str  # that is imported, e.g. "keras_resnet.models.config"
    line: int
    at_import: bool

    def __str__(self):
        return f"{self.module}:{self.line} imports {self.target}{'' if self.at_import else ' lazily'}"


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module):
    """The room of a module of ours; None for anything else."""
    parts = module.split(".")
    if parts[0] != "keras_resnet":
        return parts[0] if parts[0] in ROOMS else None
    if len(parts) == 1 or parts[1] == "__main__":
        return "package"
    return parts[1]


def is_typing_only(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports_of(path):
    """All imports of a file; those for the type checker alone are left out."""
    module, found = module_name(path), []

    def visit(node, at_import):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} has a relative import"
            targets = []
            for alias in node.names:
                inner = ROOT / node.module.replace(".", "/") / alias.name
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                targets.append(f"{node.module}.{alias.name}" if is_module else node.module)
        else:
            lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in () if is_typing_only(node) else ast.iter_child_nodes(node):
                visit(child, at_import and not lazy)
            return
        found.extend(Import(module, target, node.lineno, at_import) for target in dict.fromkeys(targets))

    visit(ast.parse(path.read_text()), True)
    return found


FILES = sorted([*ROOT.glob("keras_resnet/**/*.py"), *ROOT.glob("export/**/*.py"), ROOT / "train_main.py"])
IMPORTS = [found for path in FILES for found in imports_of(path)]


def test_the_reader_of_imports_sees():
    """The test of the test: a few imports that must have been found, with their kinds."""
    seen = {(found.module, found.target, found.at_import) for found in IMPORTS}
    assert ("keras_resnet.models.resnet", "keras_resnet.models.blocks", True) in seen
    assert ("keras_resnet.models.resnet", "keras_resnet.weights", False) in seen
    assert ("keras_resnet.models.layers", "tensorflow", False) in seen
    assert ("keras_resnet.weights.native", "h5py", True) in seen
    assert len({found.module for found in IMPORTS}) > 25


def test_every_module_has_a_room():
    rooms = {module_name(path): room(module_name(path)) for path in FILES}
    assert {module: name for module, name in rooms.items() if name not in ROOMS} == {}


def is_allowed(found):
    here, there = room(found.module), room(found.target)
    if there is None or there in (here, "errors") or ROOMS[here] is None or there in ROOMS[here]:
        return True
    doors = {(here, there), (found.module, there)}
    return not found.at_import and bool(doors & LAZY)


def test_directions_between_rooms():
    assert [str(found) for found in IMPORTS if not is_allowed(found)] == []


@pytest.mark.parametrize(
    ("module", "target", "at_import", "allowed"),
    [
        ("keras_resnet.models.config", "keras_resnet.models.layers", False, False),
        ("keras_resnet.models.resnet", "keras_resnet.weights", True, False),
        ("keras_resnet.models.resnet", "keras_resnet.weights", False, True),
        ("keras_resnet.weights.native", "keras_resnet.data", False, False),
        ("keras_resnet.data.pipeline", "keras_resnet.training", False, False),
        ("keras_resnet.training.loop", "keras_resnet.export.verification", False, False),
        ("keras_resnet.export.verification", "keras_resnet.data", False, False),
        ("keras_resnet.errors", "keras_resnet.models.config", False, False),
        ("train_main", "export", True, True),
    ],
)
def test_the_table_itself(module, target, at_import, allowed):
    assert is_allowed(Import(module, target, 1, at_import)) == allowed


def test_packages_from_elsewhere():
    wrong = []
    for found in IMPORTS:
        here, package = room(found.module), found.target.split(".")[0]
        if room(found.target) or package in STANDARD or here not in PACKAGES:
            continue
        allowed = PACKAGES[here] | (set() if found.at_import else LAZY_PACKAGES.get(here, set()))
        if package not in allowed:
            wrong.append(str(found))
    assert wrong == []


def test_heavy_packages_are_imported_by_functions_only():
    heavy = [
        str(found) for found in IMPORTS if found.at_import and found.target.split(".")[0] in NEVER_AT_IMPORT
    ]
    assert heavy == []


def test_import_is_light():
    """In a fresh process: what `import keras_resnet` pulls in that `import keras` did not.

    Keras itself imports scikit-learn and matplotlib where they are installed.
    """
    script = (
        "import json, sys, keras; before = set(sys.modules); import keras_resnet;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=True
    )
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    assert "keras_resnet.models.resnet" in modules
    packages = {module.split(".")[0] for module in modules}
    heavy = {"tensorflow", "tensorflow_datasets", "onnx", "tf2onnx", "matplotlib", "sklearn", "export"}
    assert packages & heavy == set()
    assert packages - STANDARD <= {"keras_resnet"}
    assert modules & {"keras_resnet.data", "keras_resnet.training", "keras_resnet.images.ops"} == set()


def test_train_main_is_short():
    assert len((ROOT / "train_main.py").read_text().splitlines()) < 100


def test_no_module_hides_a_package_from_a_script():
    """A folder's own `onnx.py` would be imported instead of the package by scripts beside it."""
    names = {path.stem for path in FILES} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert names & (NEVER_AT_IMPORT | {"keras", "tensorflow", "numpy", "h5py", "absl"}) == set()
