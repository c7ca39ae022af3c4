"""What the command-line programs share: absl flags, and one line with exit status 2 for bad input."""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from keras_resnet.errors import InputError


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        arguments = app.parse_flags_with_usage(argv) if _wants_help(argv) else flags.FLAGS(argv)
    except flags.Error as error:
        fail(error)
    if len(arguments) > 1:
        fail(f"unexpected argument {arguments[1]!r}; options are written --name=value")
    return arguments


def _wants_help(argv: Sequence[str]) -> bool:
    return any(argument.lstrip("-").startswith("help") for argument in argv[1:])


def fail(message: object) -> None:
    """Prints one line to standard error and exits with status 2."""
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
    sys.exit(2)


def run(main: Callable[[], int | None]) -> None:
    """Runs a program's `main` after parsing absl flags; never returns.

    `InputError` and mistyped flags become one line on standard error and exit status 2; any other
    exception keeps its traceback, because it is our mistake and not the user's.
    """

    logging.set_verbosity(logging.WARNING)  # the libraries' chatter

    def guarded(argv):
        del argv
        try:
            return main()
        except InputError as error:
            fail(error)

    app.run(guarded, flags_parser=_parse_flags)
