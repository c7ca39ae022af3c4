"""Exceptions that end a command with one line and an exit status, and functions that make them."""

import difflib
from collections.abc import Iterable


class CommandFailed(Exception):
    """Ends a command: `keras_resnet.cli` prints the message in one line and exits with `status`."""

    status = 1
    prefix = "error: "


class InputError(CommandFailed, ValueError):
    """Invalid input from the user; the message says what is wrong and what would be right."""

    status = 2


class TryAgain(CommandFailed):
    """A failure whose cause may pass: the same command may succeed, or resume the run."""

    # 128 + SIGUSR1: all versions of Kubeflow's training operator restart a container that ends with it.
    status = 138


def require(condition: bool, sentence: str, value: object) -> None:
    """Raises `InputError("SENTENCE; got VALUE")` unless the condition holds."""
    if not condition:
        raise InputError(f"{sentence}; got {value!r}")


def one_line(text: object, limit: int = 200) -> str:
    """Returns `text` as one line of at most `limit` printable ASCII characters, for a message."""
    return " ".join(str(text).encode("unicode_escape").decode("ascii")[:limit].split())


def printable(text: str) -> str:
    """Replaces characters that a terminal should not get: controls, and bytes that are not UTF-8."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def unknown_name(kind: str, name: object, known: Iterable[str]) -> InputError:
    """Returns the error for a name of a `kind` such as "model"; suggests the most similar known names."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {', '.join(near)}?"
    elif len(known) <= 12:
        hint = f"choose one of {', '.join(known)}"
    else:
        hint = f"there are {len(known)}, among them {', '.join(known[:6])}"
    return InputError(f"unknown {kind} {name!r}; {hint}")
