"""`--help` of every command prints help and nothing else, and loads neither TensorFlow nor Keras."""

import configparser
import inspect
import os
import re
import subprocess
import sys

import pytest
from helpers.commands import run

from experiments.command import COMMANDS as EXPERIMENTS
from export.__main__ import COMMAND as EXPORT
from keras_resnet import cli
from keras_resnet.__main__ import COMMAND
from keras_resnet.commands.recipes import CHANGES, TRAIN
from keras_resnet.training.options import RunOptions
from keras_resnet.training.recipe import Recipe
from keras_resnet.version import __version__

MODULES = ["export", "experiments.step_cost", *(f"experiments.{name}" for name in EXPERIMENTS)]
MODULES += [f"keras_resnet.{name}" for name in ("weights", "data", "training", "export")]
MODULES += ["keras_resnet.training.launch_local"]


def words_of(command, words=()):
    """The words that lead to each command and group of commands."""
    yield words
    if isinstance(command, cli.Group):
        for name, inner in command.commands.items():
            yield from words_of(cli.load(inner), (*words, name))


def commands_of(command):
    if isinstance(command, cli.Group):
        return [found for inner in command.commands.values() for found in commands_of(cli.load(inner))]
    return [command]


SPELLINGS = [("-m", "keras_resnet", *words) for words in words_of(COMMAND)]
SPELLINGS += [("-m", module) for module in MODULES] + [("train_main.py",)]
TABLES = [("models", "--json"), ("recipes",), ("weights", "list")]


def run_light(root, arguments):
    """Runs a command and checks what it imports; returns its output."""
    words = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "absl.flags" in imported
    assert imported & {"tensorflow", "keras", "tensorflow_datasets", "matplotlib"} == set()
    assert [line for line in lines if not line.startswith("import time:")] == []
    assert done.returncode == 0
    return done.stdout


@pytest.mark.parametrize("arguments", SPELLINGS, ids=" ".join)
def test_help(pytestconfig, arguments):
    output = run_light(pytestconfig.rootpath, [*arguments, "--help"])
    assert output.startswith("usage: ")


@pytest.mark.parametrize("arguments", [["recipes"], ["train", "--help"]], ids=" ".join)
def test_a_reader_that_ends_first(pytestconfig, arguments):
    """As in `keras-resnet train --help | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "keras_resnet", *arguments]
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            words, cwd=pytestconfig.rootpath, stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    "words",
    [
        "train --workdir=az://bucket/x",
        "evaluate --workdir=runs/any --output_dir=gs://bucket/x",
        "export --workdir=runs/any --output_dir=gs://bucket/x",
        "weights convert imagenet --model=resnet18 --output=gs://bucket/x",
        "data preview --recipe=digits --output=gs://bucket/x",
        "detect photo.jpg --weights=any --output=gs://bucket/x",
        "detect photo.jpg --weights=any --output=any.png --json=gs://bucket/x",
        "detection evaluate --dataset=scenes --weights=any --output=gs://bucket/x",
    ],
)
def test_results_are_not_written_to_urls(words, capsys):
    """They are refused before anything is computed."""
    assert run(COMMAND, *words.split()) == 2
    assert re.match("error: (gs|az)://bucket/x is a URL; give a local path", capsys.readouterr().err)


def test_optional_arguments_are_in_brackets(capsys):
    for words, usage in (
        (["weights", "list"], "weights list [MODEL]"),
        (["weights", "compare"], "weights compare SOURCE --model=..."),
        (["detect"], "detect PHOTOS... --weights=... --output=... [flags]"),
    ):
        assert run(COMMAND, *words, "--help") == 0
        assert capsys.readouterr().out.splitlines()[0].endswith(usage)


@pytest.mark.parametrize("arguments", TABLES, ids=" ".join)
def test_tables_of_names(pytestconfig, arguments):
    assert run_light(pytestconfig.rootpath, ["-m", "keras_resnet", *arguments]).count("\n") > 5


def test_the_version(pytestconfig):
    output = run_light(pytestconfig.rootpath, ["-m", "keras_resnet", "--version"])
    assert output == f"keras-resnet-zoo {__version__}\n"


@pytest.mark.parametrize("command", [*commands_of(COMMAND), EXPORT], ids=lambda command: command.about[:40])
def test_functions_take_what_the_commands_give(command):
    given = [entry.name for entry in (*command.flags, *command.arguments)] + list(command.fixed)
    inspect.signature(cli.load(command.main)).bind(**dict.fromkeys(given))
    assert all(entry.help for entry in (*command.flags, *command.arguments))


def test_help_of_a_flag_is_that_of_its_field():
    texts = {flag.name: flag.help for flag in TRAIN.flags}
    for options, names in ((Recipe, CHANGES), (RunOptions, RunOptions.__dataclass_fields__)):
        for name in names:
            assert texts[name] == options.__dataclass_fields__[name].metadata["help"]


def test_a_package_that_is_not_installed_is_one_line(capsys):
    def main():
        import no_such_package  # noqa: F401

    assert run(cli.Command(main, "Imports.", extra="export")) == 2
    assert capsys.readouterr().err == (
        "error: no_such_package is not installed; install what this command needs: "
        "pip install 'keras-resnet-zoo[export]'\n"
    )


def test_a_missing_part_of_a_package_is_a_bug():
    def main():
        import keras_resnet.no_such_module  # noqa: F401

    with pytest.raises(ModuleNotFoundError):
        cli.run(cli.Command(main, "Imports."), [])


def test_the_extras_of_the_commands_exist(pytestconfig):
    metadata = configparser.ConfigParser()
    metadata.read(pytestconfig.rootpath / "setup.cfg")
    extras = {command.extra for command in (*commands_of(COMMAND), EXPORT)}
    assert extras == {"train", "export", "detection"}
    assert extras <= set(metadata["options.extras_require"])
    assert metadata["metadata"]["name"] == cli.DISTRIBUTION


def test_workers_run_the_command_train(pytestconfig):
    words = [sys.executable, "-m", "keras_resnet", "launch", "--workers=1", "--", "--help"]
    done = subprocess.run(words, cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[0] usage: python -m keras_resnet train [flags]\n")


def test_sigterm_ends_any_command_with_status_143():
    """Also as the first process of a container, which has no default handlers."""
    script = (
        "import os, signal, time; from keras_resnet import cli\n"
        "def wait(): os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)\n"
        "cli.run(cli.Command(wait, 'Waits.'), [])"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "")
