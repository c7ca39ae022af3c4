"""The import table, and the limits on size and nesting, checked on the source text."""

import ast
import collections
import dataclasses
import functools
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_resnet

ROOT = Path(keras_resnet.__file__).parents[1]
STANDARD = set(sys.stdlib_module_names)
TOOLS = ("train_main", "export", "experiments", "benchmarks")
FILES = sorted(
    [path for top in ("keras_resnet", *TOOLS) for path in ROOT.glob(f"{top}/**/*.py")]
    + [ROOT / "train_main.py"]
)

# What each room may import of the project, besides itself. A module belongs to the room with the longest
# matching name; every `__main__`, `keras_resnet.commands`, `keras_resnet.evaluation`, an alias of one, and
# the programs at the top level belong to "tools".
FLOOR = {"floor"}
NETWORKS = FLOOR | {"models", "images.preprocessing"}
WEIGHTS = NETWORKS | {"weights", "applications"}
DATA = WEIGHTS | {"images", "data"}
TRAINING = DATA | {"run_folder", "training"}
ROOMS = {
    "floor": set(),
    "models": FLOOR,
    "images.preprocessing": FLOOR,
    "weights": NETWORKS,
    "applications": NETWORKS | {"weights"},
    "images": WEIGHTS,
    "data": DATA,
    "run_folder": DATA,
    "training": TRAINING,  # neither classification nor detection
    "classification": TRAINING,
    "detection operations": FLOOR,
    "detection": TRAINING | {"detection operations"},
    "export": DATA | {"run_folder"},
    "detection.export": TRAINING | {"export", "detection", "detection operations"},
    "package": None,  # keras_resnet/__init__.py: names for type checkers, loaded at their first use
    "tools": None,  # None: anything
}
FLOOR_MODULES = {
    *("cli", "deprecation", "errors", "files", "object_storage", "processes", "progress", "quiet", "tables"),
    "version",
}
DETECTION_OPERATIONS = {"anchors", "boxes", "matching", "nms", "roi_align"}  # a floor below detection

# The only imports of our own modules inside functions: (importing module, imported module).
LAZY: set[tuple[str, str]] = set()

# What each room may import from elsewhere; rooms not named here may import anything.
NUMERIC = {"keras", "numpy"}
PACKAGES = {
    "floor": {"numpy", "absl", "tqdm"},
    "models": NUMERIC,
    "images.preprocessing": {"numpy", "keras", "PIL"},
    "weights": NUMERIC | {"h5py", "lazy_loader", "ml_dtypes", "tqdm"},
    "applications": NUMERIC,
    "detection operations": {"numpy", "tensorflow"},
    "package": {"lazy_loader"},
    "run_folder": {"numpy"},
}
LAZY_PACKAGES = {
    "floor": {"obstore"},
    "models": {"tensorflow"},
    "weights": {"torch", "safetensors"},
    "run_folder": {"matplotlib"},
}
# Only the functions that need these may import them.
NEVER_AT_IMPORT = {
    *("matplotlib", "sklearn", "onnx", "onnxruntime", "tf2onnx", "ai_edge_litert", "torch", "safetensors"),
    *("pycocotools", "obstore"),
}

LONGEST_FUNCTION = 60  # lines of code: without the docstring
DEEPEST_NESTING = 4
TASK_WORDS = re.compile(r"softmax|one_hot|label|top_?-?1", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module, in one place."""

    module: str  # that imports, e.g. "keras_resnet.weights.spec"
    target: str  # that is imported, e.g. "keras_resnet.models.config"
    line: int = 1
    in_function: bool = False
    for_types: bool = False  # under `if TYPE_CHECKING:`

    def __str__(self):
        return f"{self.module} -> {self.target}"


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}
TREES = {module: ast.parse(path.read_text()) for module, path in MODULES.items()}


def is_ours(module):
    return module.split(".")[0] in ("keras_resnet", *TOOLS)


def room(module):
    """The room of a module of ours; None for anything else."""
    parts = module.split(".")
    if not is_ours(module):
        return None
    if parts[0] != "keras_resnet" or parts[-1] == "__main__" or parts[1:2] in (["evaluation"], ["commands"]):
        return "tools"
    if len(parts) == 1:
        return "package"
    if parts[1] in FLOOR_MODULES:
        return "floor"
    if parts[1] == "detection" and parts[-1] in DETECTION_OPERATIONS:
        return "detection operations"
    inner = ".".join(parts[1:3])
    return inner if inner in ROOMS else parts[1]


def is_for_types(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imported_modules(module, node):
    """The modules that an import statement names; a name that is a module counts as that module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, f"{module}:{node.lineno} has a relative import"
    inner = [f"{node.module}.{alias.name}" for alias in node.names]
    return list(dict.fromkeys(name if name in MODULES else node.module for name in inner))


def imports_of(module):
    found = []

    def visit(node, in_function, for_types):
        if isinstance(node, ast.Import | ast.ImportFrom):
            targets = imported_modules(module, node)
            found.extend(Import(module, target, node.lineno, in_function, for_types) for target in targets)
            return
        in_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types |= is_for_types(node)
        for child in ast.iter_child_nodes(node):
            visit(child, in_function, for_types)

    visit(TREES[module], False, False)
    return found


IMPORTS = [found for module in MODULES for found in imports_of(module)]
OWN_IMPORTS = [found for found in IMPORTS if is_ours(found.target)]


def test_the_reader_of_imports_sees():
    """The test of the test: a few imports that must have been found, with their kinds."""
    seen = {(found.module, found.target, found.in_function) for found in IMPORTS}
    assert ("keras_resnet.models.resnet", "keras_resnet.models.blocks", False) in seen
    assert ("keras_resnet.models.layers", "tensorflow", True) in seen
    assert ("keras_resnet.weights.native", "h5py", False) in seen
    assert len({found.module for found in IMPORTS}) > 90


def test_every_module_has_a_room():
    assert {module: room(module) for module in MODULES if room(module) not in ROOMS} == {}


def is_allowed(found):
    here, there = room(found.module), room(found.target)
    return there in (None, here) or ROOMS[here] is None or there in ROOMS[here]


def test_directions_between_rooms():
    """Inside functions and for type checkers, too."""
    assert {str(found) for found in OWN_IMPORTS if not is_allowed(found)} == set()


@pytest.mark.parametrize(
    ("module", "target", "allowed"),
    [
        ("keras_resnet.models.config", "keras_resnet.models.layers", True),
        ("keras_resnet.models.config", "keras_resnet.errors", True),
        ("keras_resnet.models.resnet", "keras_resnet.weights.native", False),
        ("keras_resnet.models.resnet", "keras_resnet.images.ops", False),
        ("keras_resnet.weights.native", "keras_resnet.models.resnet", True),
        ("keras_resnet.weights.native", "keras_resnet.images.preprocessing", True),
        ("keras_resnet.weights.native", "keras_resnet.applications", False),
        ("keras_resnet.applications", "keras_resnet.weights.weight_file", True),
        ("keras_resnet.data.pipeline", "keras_resnet.training.recipe", False),
        ("keras_resnet.data.__main__", "keras_resnet.training.recipe", True),
        ("keras_resnet.run_folder", "keras_resnet.training.recipe", False),
        ("keras_resnet.training.loop", "keras_resnet.classification.task", False),
        ("keras_resnet.training.loop", "keras_resnet.export.verification", False),
        ("keras_resnet.classification.task", "keras_resnet.training.task", True),
        ("keras_resnet.classification.task", "keras_resnet.detection.task", False),
        ("keras_resnet.detection.matching", "keras_resnet.detection.boxes", True),
        ("keras_resnet.detection.boxes", "keras_resnet.models.config", False),
        ("keras_resnet.detection.boxes", "keras_resnet.detection.task", False),
        ("keras_resnet.detection.task", "keras_resnet.detection.boxes", True),
        ("keras_resnet.detection.detector", "keras_resnet.detection.export.onnx", False),
        ("keras_resnet.detection.detector", "keras_resnet.export.graph", False),
        ("keras_resnet.detection.export.onnx", "keras_resnet.export.graph", True),
        ("keras_resnet.export.verification", "keras_resnet.training.recipe", False),
        ("keras_resnet.export.verification", "keras_resnet.run_folder", True),
        ("keras_resnet.errors", "keras_resnet.models.config", False),
        ("keras_resnet.cli", "keras_resnet.__main__", False),
        ("keras_resnet.models.config", "keras_resnet", False),
        ("keras_resnet.training.loop", "train_main", False),
        ("train_main", "export", True),
    ],
)
def test_the_table_itself(module, target, allowed):
    assert is_allowed(Import(module, target)) == allowed


def test_own_modules_are_imported_at_the_top():
    inner = {(found.module, found.target) for found in OWN_IMPORTS if found.in_function}
    assert {f"{module} -> {target}" for module, target in inner - LAZY} == set()
    assert LAZY - inner == set()  # an exception that is not needed any more


def private_uses(module):
    """`from ours import _name`, and `ours._name`."""
    own = {}
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom) and is_ours(node.module or ""):
            for alias in node.names:
                own[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                if is_private(alias.name):
                    yield f"{module} <- {node.module}.{alias.name}"
    for node in ast.walk(TREES[module]):
        is_access = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if is_access and is_private(node.attr) and own.get(node.value.id) in MODULES:
            yield f"{module} <- {own[node.value.id]}.{node.attr}"


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


def test_no_private_imports():
    assert {use for module in MODULES for use in private_uses(module)} == set()


def circles(edges):
    """The groups of modules that can all reach each other."""

    @functools.cache
    def reached(module):
        seen, waiting = set(), [module]
        while waiting:
            new = edges[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    groups = {frozenset(m for m in reached(module) if module in reached(m)) for module in list(edges)}
    return [set(group) for group in groups if group]


def edges():
    found = collections.defaultdict(set)
    for imported in OWN_IMPORTS:
        if imported.target in MODULES:
            found[imported.module].add(imported.target)
    return found


def test_no_import_circles():
    """Those hidden by an import inside a function, or for type checkers only, count."""
    assert circles(edges()) == []


def test_circles_are_found():
    found = collections.defaultdict(set, {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"d", "e2"}})
    assert circles(found) == [{"a", "b", "c"}]


def functions(tree):
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def code_lines(function):
    docstring = ast.get_docstring(function, clean=False)
    return function.end_lineno - function.lineno + 1 - (len(docstring.splitlines()) if docstring else 0)


def nesting(node, depth=0):
    """The most blocks inside each other; functions and classes inside the function count by themselves."""
    blocks = ast.If | ast.For | ast.While | ast.With | ast.Try | ast.Match | ast.AsyncFor | ast.AsyncWith
    inner = [
        nesting(child, depth + isinstance(child, blocks))
        for child in ast.iter_child_nodes(node)
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda)
    ]
    return max([depth, *inner])


def test_functions_are_short():
    long = {
        f"{module}.{function.name}"
        for module, tree in TREES.items()
        for function in functions(tree)
        if code_lines(function) > LONGEST_FUNCTION
    }
    assert long == set()


def test_functions_are_not_deeply_nested():
    deep = {
        f"{module}.{function.name}"
        for module, tree in TREES.items()
        for function in functions(tree)
        if nesting(function) > DEEPEST_NESTING
    }
    assert deep == set()


def public_names(tree):
    """Those defined at the top of a module; not those that it imports."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        else:
            continue
        yield from (name for name in names if not name.startswith("_"))


def words_of(tree):
    """All identifiers, and the words of short strings: `monkeypatch.setattr("module.name", ...)`."""
    words = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            words.add(node.id)
        elif isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif isinstance(node, ast.alias):
            words.add(node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            words.update(re.findall(r"\w+", node.value))
    return words


def annotated_words(tree):
    """The names in the annotations: the types of a module's functions are for those who call them."""
    words = set()
    for node in ast.walk(tree):
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            words |= words_of(annotation) if isinstance(annotation, ast.AST) else set()
    return words


def unused_names():
    others = {*ROOT.glob("tests/**/*.py"), *ROOT.glob("docs/**/*.py")} - {Path(__file__)}
    users = collections.Counter()
    for tree in [*TREES.values(), *(ast.parse(path.read_text()) for path in others)]:
        users.update(words_of(tree))
    for path in ROOT.glob("keras_resnet/**/*.pyi"):  # what a package offers is for its users
        offered = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        users.update({alias.name for node in offered for alias in node.names})
    unused = set()
    for module, tree in TREES.items():
        own, types = words_of(tree), annotated_words(tree)
        unused |= {
            f"{module}.{name}"
            for name in public_names(tree)
            if users[name] == (name in own) and name not in types
        }
    return unused


def test_public_names_are_used_elsewhere():
    """A public name of a module that no other file uses, tests included, should be private, or go."""
    assert unused_names() == set()


def task_words():
    return {
        f"{path.name}: {word.lower()}"
        for path in ROOT.glob("keras_resnet/training/**/*.py")
        for word in TASK_WORDS.findall(path.read_text())
    }


def test_training_names_no_task():
    assert task_words() == {"progress.py: label"}  # an argument of matplotlib


def test_packages_from_elsewhere():
    wrong = set()
    for found in IMPORTS:
        here, package = room(found.module), found.target.split(".")[0]
        if is_ours(found.target) or package in STANDARD or here not in PACKAGES or found.for_types:
            continue
        allowed = PACKAGES[here] | (LAZY_PACKAGES.get(here, set()) if found.in_function else set())
        if package not in allowed:
            wrong.add(str(found))
    assert wrong == set()


def test_heavy_packages_are_imported_by_functions_only():
    at_import = [found for found in IMPORTS if not (found.in_function or found.for_types)]
    library = [found for found in at_import if found.module.split(".")[0] in ("keras_resnet", "export")]
    assert [str(found) for found in library if found.target.split(".")[0] in NEVER_AT_IMPORT] == []


def test_import_is_light():
    """`--help` and a table of names need neither Keras nor TensorFlow."""
    script = "import json, sys, keras_resnet; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=True
    )
    packages = {module.split(".")[0] for module in json.loads(done.stdout.splitlines()[-1])}
    assert packages & {"keras", "tensorflow", "numpy", "h5py", "matplotlib", "sklearn"} == set()


def test_no_public_name_is_also_a_submodule():
    """`from keras_resnet import name` must not depend on what was imported before."""
    for module, path in MODULES.items():
        if path.name == "__init__.py":
            inner = {name.removeprefix(f"{module}.") for name in MODULES if name.startswith(f"{module}.")}
            assert set(public_names(TREES[module])) & inner == set(), module
            assert set(getattr(importlib.import_module(module), "__all__", ())) & inner == set(), module


def test_train_main_is_short():
    assert len((ROOT / "train_main.py").read_text().splitlines()) < 100


def test_no_module_hides_a_package_from_a_script():
    """A folder's own `onnx.py` would be imported instead of the package by scripts beside it."""
    names = {path.name.removesuffix(".py") for path in ROOT.iterdir()}
    names |= {path.stem for path in FILES if path.parent.joinpath("__main__.py").exists()}
    assert names & (NEVER_AT_IMPORT | {"keras", "tensorflow", "numpy", "h5py", "absl"}) == set()
