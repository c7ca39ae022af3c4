"""Static types: inferred types in user code, and annotations of all public parameters."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import keras_resnet

ROOT = Path(keras_resnet.__file__).parents[1]
PROGRAMS = ("keras_resnet", "export", "experiments", "benchmarks")
USER = """
import keras_resnet
from keras_resnet import Preprocessing, ResNet50, ResNetConfig, build_model

reveal_type(ResNet50())
reveal_type(keras_resnet.CifarResNet20(False, None, input_shape=(None, None, 3), shortcut="B"))
reveal_type(build_model("resnet50", weights="imagenet", features_only=True))
reveal_type(keras_resnet.preprocessing_of("imagenet", "resnet50"))
reveal_type(keras_resnet.MODELS["resnet50"].shortcut)
reveal_type(keras_resnet.feature_info(ResNet50())["C2"].stride)
ResNet50(weights=3)
ResNet50(clases=10)
ResNet50(shortcut="E")
keras_resnet.ResNet51()
"""


def test_types_in_user_code(tmp_path):
    """In a separate folder, with the package's source on the path."""
    (tmp_path / "user.py").write_text(USER)
    settings = {"typeCheckingMode": "basic", "pythonVersion": "3.11", "extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = ["-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    done = subprocess.run([sys.executable, *command], text=True, capture_output=True)
    reports = json.loads(done.stdout)["generalDiagnostics"]
    lines = USER.splitlines()
    found = {}
    for report in reports:
        line = lines[report["range"]["start"]["line"]]
        found.setdefault(line, []).append((report["severity"], report.get("rule"), report["message"]))
    revealed = [found.pop(line)[0][2].split(" is ", 1)[1] for line in lines if line.startswith("reveal")]
    assert [text.strip('"') for text in revealed] == [
        *["Model"] * 3,
        "Preprocessing",
        "Literal['A', 'B', 'C', 'D'] | None",
        "int",
    ]
    assert {line: [rule for _, rule, _ in errors] for line, errors in found.items()} == {
        "ResNet50(weights=3)": ["reportArgumentType"],
        "ResNet50(clases=10)": ["reportCallIssue"],
        'ResNet50(shortcut="E")': ["reportArgumentType"],
        "keras_resnet.ResNet51()": ["reportAttributeAccessIssue"],
    }


def public_functions(body):
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)
        elif isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__init__"):
            yield node


def test_public_parameters_are_annotated():
    missing = []
    for path in [path for top in PROGRAMS for path in ROOT.glob(f"{top}/**/*.py")]:
        for function in public_functions(ast.parse(path.read_text()).body):
            named = function.args
            parameters = [*named.posonlyargs, *named.args, *named.kwonlyargs, named.vararg, named.kwarg]
            missing += [
                f"{path.relative_to(ROOT)}: {function.name}({parameter.arg})"
                for parameter in parameters
                if parameter and parameter.annotation is None and parameter.arg not in ("self", "cls")
            ]
    assert missing == []


def test_the_package_is_marked_as_typed():
    assert (ROOT / "keras_resnet" / "py.typed").is_file()
    assert "keras_resnet = py.typed" in (ROOT / "setup.cfg").read_text()
