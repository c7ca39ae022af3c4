"""`python -m keras_resnet.weights`: lists published weights, converts and compares other libraries'.

Exit status: 0; 1 if `compare` finds a difference; 2 for bad input, with one line on standard error.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from keras_resnet.errors import InputError
from keras_resnet.tables import markdown_table
from keras_resnet.weights.compare import TOLERANCE, compare
from keras_resnet.weights.native import save_weights
from keras_resnet.weights.registry import get_entry, list_weights
from keras_resnet.weights.spec import ModelSpec
from keras_resnet.weights.weight_file import open_weights


def convert(source: str, model: str, output: str) -> ModelSpec:
    """Converts weights to a native file, which takes RGB whatever the source takes.

    Args:
        source: a file to convert, or the name of published weights of the model.
        model: a name of `list_models()`.
        output: file to write; must end with `.weights.h5`.

    Returns:
        The description stored in the file.

    Raises:
        InputError: the source cannot be downloaded or read, or does not fit the model.
        OSError: the output cannot be written.
    """
    if not str(output).endswith(".weights.h5"):
        raise InputError(f"--output must end with .weights.h5; got {output}")
    with open_weights(source, model) as file:
        file.tensors()  # refuses a native file
        network = file.spec.build()
        file.load(network)
    save_weights(network, output, file.spec)
    return file.spec


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Prints one line, without the usage."""
        _fail(message)


def _fail(message: object) -> NoReturn:
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
    sys.exit(2)


def entry_rows(model: str | None = None) -> list[tuple[str, ...]]:
    """Returns one row of text per published set of weights, for one network or all."""
    rows = []
    for full_name in list_weights():
        network, name = full_name.split("/")
        if model in (None, network):
            entry = get_entry(name, network)
            view = entry.preprocessing
            rows.append(
                (
                    network,
                    name + (" (imagenet)" if entry.default else ""),
                    f"{entry.top1:.2f}",
                    f"{entry.top5:.2f}",
                    f"{view.resize}, {view.size}",
                    view.interpolation,
                    entry.license,
                )
            )
    return rows


HEADER = ("network", "weights", "top-1", "top-5", "resize, crop", "interpolation", "license")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command given by the arguments."""
    parser = _Parser(prog="python -m keras_resnet.weights", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("list", help="print the table of published weights")
    command.add_argument("model", nargs="?", help="only this network")
    source = "name of published weights, .safetensors, .pth, .pt or keras.applications' .h5"
    network = "a network of the zoo, such as resnet50_v1_5"
    command = commands.add_parser("convert", help="convert another library's weights to .weights.h5")
    command.add_argument("source", help=source)
    command.add_argument("--model", required=True, help=network)
    command.add_argument("--output", required=True, help="file to write; ends with .weights.h5")
    command = commands.add_parser("compare", help="run weights in their own framework and in ours")
    command.add_argument("source", help=source)
    command.add_argument("--model", required=True, help=network)
    given = parser.parse_args(arguments)
    try:
        if given.command == "list":
            list_weights(given.model)  # refuses an unknown name
            print(markdown_table(HEADER, entry_rows(given.model)))
        elif given.command == "convert":
            spec = convert(given.source, given.model, given.output)
            print(f"{Path(given.output)}: {spec.model}, {spec.classes} classes")
        else:
            framework, difference = compare(given.source, given.model)
            equal = difference <= TOLERANCE
            print(
                f"{given.source}: {given.model} here and in {framework} differ by at most "
                f"{difference:.1e} of the largest logit: {'equal' if equal else 'NOT EQUAL'}"
            )
            sys.exit(not equal)
    except (InputError, OSError) as error:
        _fail(error)


if __name__ == "__main__":
    main()
