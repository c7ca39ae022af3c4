"""Old names work, and each gives one warning that names its successor."""

import pkgutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import keras_resnet
from keras_resnet import training, weights
from keras_resnet.deprecation import OLD_NAMES, get_old_name

COMMAND = "python -m keras_resnet.evaluation"
# A row of a module stands for all names in it.
NAMES = {
    "keras_resnet.Entry": "keras_resnet.PretrainedWeights",
    "keras_resnet.weights.Entry": "keras_resnet.weights.PretrainedWeights",
    "keras_resnet.training.Machine": "keras_resnet.training.RunOptions",
    "keras_resnet.data.StreamedSplit": "keras_resnet.data.RecordSplit",
    "keras_resnet.evaluation.Member": "keras_resnet.classification.EvaluatedModel",
    "keras_resnet.evaluation.evaluate": "keras_resnet.classification.evaluate",
    "keras_resnet.evaluation.find_member": "keras_resnet.classification.load_evaluated_model",
    "export.to_onnx": "keras_resnet.export.to_onnx",
}


def number(version):
    return tuple(map(int, version.split(".")))


def import_in_user_code(name):
    """The result of `from MODULE import NAME`, and the warnings that Python shows by default."""
    module, _, attribute = name.rpartition(".")
    names = {}
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        exec(compile(f"from {module} import {attribute} as found", "user.py", "exec"), names)
    return names["found"], shown


@pytest.mark.parametrize("old", NAMES)
def test_an_old_name_gives_the_new_object_and_one_warning(old):
    found, (warning,) = import_in_user_code(old)
    assert found is pkgutil.resolve_name(NAMES[old])
    assert warning.category is FutureWarning
    assert warning.filename == "user.py"
    text = f"{old} was renamed to {NAMES[old]} in version 0.2.0 and will be removed in 0.4.0"
    assert str(warning.message) == text


def test_every_old_name_is_tested():
    tested = [COMMAND, *NAMES]
    assert [row.old for row in OLD_NAMES if not any(name.startswith(row.old) for name in tested)] == []


def test_the_old_command_runs_and_names_the_new_one():
    words = [sys.executable, *COMMAND.split()[1:], "--help"]
    root = Path(keras_resnet.__file__).parents[1]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ")
    assert done.stderr == f"warning: {get_old_name(COMMAND).message}\n"


@pytest.mark.parametrize("old", ["keras_resnet.evaluation.evaluat", "export.to_onx", "keras_resnet.Entri"])
def test_a_name_that_never_existed_is_an_error_without_a_warning(old):
    module, _, name = old.rpartition(".")
    with pytest.raises(AttributeError, match=name):
        getattr(pkgutil.resolve_name(module), name)


def test_old_names_are_not_offered():
    assert {"Entry", "Machine"} & {*dir(keras_resnet), *dir(training), *dir(weights)} == set()


def test_old_names_are_removed_in_time():
    for row in OLD_NAMES:
        assert number(row.since) <= number(keras_resnet.__version__) < number(row.until)
