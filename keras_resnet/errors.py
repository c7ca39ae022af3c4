"""The one exception for what a person got wrong, and the sentence for a mistyped name."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from a person: one line that says what is wrong and what would be right.

    The command-line programs print it and exit with status 2 (see `keras_resnet.cli`).
    """


def one_line(text: object, limit: int = 200) -> str:
    """Text from a file or another program, fit for a message: printable ASCII on one line, cut at `limit`."""
    return " ".join(str(text).encode("unicode_escape").decode("ascii")[:limit].split())


def unknown_name(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that is not in a table, with the nearest ones that are.

    Args:
        kind: what the name stands for, e.g. "model" or "recipe".
        name: what was given.
        known: the names that would have been right.
    """
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {', '.join(near)}?"
    elif len(known) <= 12:
        hint = f"choose one of {', '.join(known)}"
    else:
        hint = f"there are {len(known)}, among them {', '.join(known[:6])}"
    return InputError(f"unknown {kind} {name!r}; {hint}")
