"""The command line: commands with flags and arguments; an error is one line and an exit status.

    COMMAND = Command("package.module:function", "What it does.", (Flag("model", "A network."),))

    if __name__ == "__main__":
        run(COMMAND)

The function takes each flag and argument by its name, and returns an exit status or None. Its module is
imported, without TensorFlow's start-up messages, only when the command runs, so that `--help` is fast.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import os
import select
import shlex
import signal
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TextIO

from absl import flags as absl_flags
from absl import logging

from keras_resnet.errors import CommandFailed, InputError, unknown_name
from keras_resnet.files import local_path, temporary_files_in
from keras_resnet.object_storage import is_stored
from keras_resnet.processes import exit_on_sigterm
from keras_resnet.quiet import quiet
from keras_resnet.version import __version__

DISTRIBUTION = "keras-resnet-zoo"
"""The name that pip installs this package by."""

# The kinds of flags: how absl defines them, and how the help spells them.
_KINDS: dict[type, tuple[Callable, str]] = {
    str: (absl_flags.DEFINE_string, "--{}=TEXT"),
    int: (absl_flags.DEFINE_integer, "--{}=N"),
    float: (absl_flags.DEFINE_float, "--{}=NUMBER"),
    bool: (absl_flags.DEFINE_bool, "--[no]{}"),
    tuple: (absl_flags.DEFINE_list, "--{}=A,B,..."),
    list: (absl_flags.DEFINE_multi_string, "--{}=TEXT"),
}
_WRITTEN = ("workdir", "output_dir", "output", "json")  # flags that name files or folders of results
_WRAPPER = textwrap.TextWrapper(100, initial_indent=" " * 6, subsequent_indent=" " * 6)


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag `--name=value`, or a positional argument.

    The kind is str, int, float, bool (`--name`, `--noname`), tuple (texts separated by commas) or list (one
    text per flag). A positional argument is a str, or a tuple of all remaining arguments.
    """

    name: str
    help: str
    kind: type = str
    default: Any = None
    required: bool = False


@dataclasses.dataclass(frozen=True)
class Command:
    """A function, or its name "module:function", with its description, flags and arguments."""

    main: str | Callable[..., int | None]
    about: str  # the first line is a sentence
    flags: tuple[Flag, ...] = ()
    arguments: tuple[Flag, ...] = ()
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # more keyword arguments
    extra: str = "train"  # the extra of the distribution that installs what the function imports


@dataclasses.dataclass(frozen=True)
class Group:
    """Commands by name, of which the first argument chooses one.

    A command "module:NAME", or "module" for its COMMAND, is imported when it is chosen.
    """

    about: str
    commands: Mapping[str, "Command | Group | str"]
    default: Command | None = None  # runs if no name is given


def flags_of(options: type, names: Iterable[str] | None = None, optional: bool = False) -> tuple[Flag, ...]:
    """Flags for some or all fields of a dataclass, described by their `metadata["help"]`.

    `optional` flags have None as default, not the field's default.
    """
    fields = {field.name: field for field in dataclasses.fields(options)}
    found = []
    for field in fields.values() if names is None else (fields[name] for name in names):
        is_tuple = typing.get_origin(field.type) is tuple
        kind: Any = tuple if is_tuple else (*typing.get_args(field.type), field.type)[0]  # str of str | None
        default: Any = None if optional else field.default
        if is_tuple and not optional:
            default = list(default)  # absl takes lists
        found.append(Flag(field.name, field.metadata["help"], kind, default))
    return tuple(found)


def run(
    command: Command | Group,
    arguments: Sequence[str] | None = None,
    program: str | None = None,
) -> NoReturn:
    """Runs a command and exits.

    SIGTERM ends the command with status 143 unless it handles the signal itself.
    Invalid input, and any other `CommandFailed`, becomes one line on standard error and an exit status;
    other exceptions keep their tracebacks, because they are bugs. If the reader of the output ends, as `head`
    does, the status is 141, as for other programs. The arguments, and the program's name in the help, are by
    default those of this process.
    """
    try:
        with exit_on_sigterm():  # a container ignores SIGTERM if its first process does not handle it
            status = _run(command, sys.argv[1:] if arguments is None else arguments, program or _program())
        if sys.stdout is not None:  # it is None if it is closed
            sys.stdout.flush()
    except CommandFailed as failure:
        print(failure.prefix + " ".join(str(failure).split()), file=sys.stderr)
        status = failure.status
    except BrokenPipeError:
        stdout = sys.stdout
        if stdout is None or not _reader_has_ended(stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())  # for what is flushed at the exit
        status = 128 + signal.SIGPIPE
    sys.exit(status or 0)


def _reader_has_ended(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nothing reads any more."""
    poll = select.poll()
    with contextlib.suppress(OSError):  # it is not a file
        poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def command_line(program: str, command: Command, given: Mapping[str, Any]) -> str:
    """The command line that runs a command again, with the flags that differ from their defaults."""
    changed = [flag for flag in command.flags if given[flag.name] != flag.default]
    return shlex.join([*program.split(), *(f"--{flag.name}={_text(given[flag.name])}" for flag in changed)])


def _run(command: Command | Group, arguments: Sequence[str], program: str) -> int | None:
    while isinstance(command, Group):
        name, *rest = arguments or [""]
        if _is_help(name):
            print(_group_help(command, program))
            return 0
        if name == "--version":
            print(f"{DISTRIBUTION} {__version__}")
            return 0
        if command.default is not None and (not name or name.startswith("-")):
            command = command.default
            break
        if not name:
            raise InputError(f"required: command; choose one of {', '.join(command.commands)}")
        if name not in command.commands:
            raise unknown_name("command", name, command.commands)
        command, arguments, program = load(command.commands[name]), rest, f"{program} {name}"
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if any(_is_help(argument) for argument in own):
        print(_help(command, program))
        return 0
    values = parse(command, arguments)
    for name in _WRITTEN:  # before the work whose result could not be written
        value = values.get(name)
        if isinstance(value, str) and not (name == "workdir" and is_stored(value)):
            local_path(value)
    # Before TensorFlow is loaded. It logs a lot at start-up; uses oneDNN, with which training is two to three
    # times as fast, only on request on CPUs without AVX-512 VNNI; and takes all memory of the GPUs.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    with temporary_files_in(values.get("output_dir") or values.get("workdir") or "."):
        try:
            with quiet():
                main = load(command.main)
            logging.set_verbosity(logging.WARNING)
            return main(**values, **command.fixed)
        except ModuleNotFoundError as error:
            if error.name is None or "." in error.name:
                raise  # part of a package is missing
            raise InputError(
                f"{error.name} is not installed; install what this command needs: "
                f"pip install '{DISTRIBUTION}[{command.extra}]'"
            ) from error


def check_exclusive(given: Mapping[str, Any], flag: str, others: Iterable[str]) -> None:
    """Raises `InputError` if a flag and one of the others are given: their values are not None."""
    for other in others:
        if given[flag] is not None and given[other] is not None:
            raise InputError(f"--{flag} and --{other} exclude each other")


def load(item: Any) -> Any:
    """Imports a "module:NAME", or the COMMAND of a "module"; returns anything else unchanged."""
    if not isinstance(item, str):
        return item
    module, _, name = item.partition(":")
    if not _is_available(item):
        raise InputError(
            f"{module.partition('.')[0]} is only in a checkout of the project; run this in its folder"
        )
    return getattr(importlib.import_module(module), name or "COMMAND")


def _is_available(command: Command | Group | str) -> bool:
    """Whether the package of a command is installed, or in the current folder."""
    return not isinstance(command, str) or importlib.util.find_spec(command.partition(".")[0]) is not None


def parse(command: Command, arguments: Sequence[str]) -> dict[str, Any]:
    """The values of a command's flags and arguments, by name.

    Raises:
        InputError: a flag does not exist or lacks a valid value, or a required one is missing.
    """
    values = absl_flags.FlagValues()
    for flag in command.flags:
        _KINDS[flag.kind][0](flag.name, flag.default, flag.help, flag_values=values)
    try:
        given = values(["", *arguments])[1:]
    except (absl_flags.Error, ValueError) as error:
        raise InputError(str(error)) from None
    found = values.flag_values_dict()
    for argument in command.arguments:
        if argument.kind is tuple:
            found[argument.name], given = tuple(given), []
        else:
            found[argument.name] = given.pop(0) if given else argument.default
    if given:
        raise InputError(f"unexpected argument {given[0]!r}; options are written --name=value")
    missing = [a.name for a in command.arguments if a.required and found[a.name] is None]
    missing += [f"--{flag.name}" for flag in command.flags if flag.required and found[flag.name] is None]
    if missing:
        raise InputError(f"required: {', '.join(missing)}")
    return found


def _is_help(argument: str) -> bool:
    return argument == "-h" or (argument.startswith("-") and argument.lstrip("-").startswith("help"))


def _program() -> str:
    """How this process was started: `python -m MODULE`, `python FILE` or the installed command."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return f"python -m {spec.name.removesuffix('.__main__')}"
    if sys.argv[0].endswith(".py"):
        return f"python {os.path.relpath(sys.argv[0])}"
    return os.path.basename(sys.argv[0])


def _help(command: Command, program: str) -> str:
    usage = [program, *map(_argument_usage, command.arguments)]
    usage += [f"--{flag.name}=..." for flag in command.flags if flag.required]
    usage += ["[flags]"] if any(not flag.required for flag in command.flags) else []
    lines = [f"usage: {' '.join(usage)}", "", command.about]
    for title, entries in (("arguments", command.arguments), ("flags", command.flags)):
        lines += ["", f"{title}:"] if entries else []
        for entry in entries:
            spelling = (
                entry.name.upper() if title == "arguments" else _KINDS[entry.kind][1].format(entry.name)
            )
            default = f" Default: {_text(entry.default)}." if _text(entry.default) else ""
            repeated = " May be repeated." if entry.kind is list else ""
            lines += [f"  {spelling}", _WRAPPER.fill(entry.help + default + repeated)]
    return "\n".join(lines)


def _argument_usage(argument: Flag) -> str:
    """How the first line of the help spells a positional argument."""
    name = argument.name.upper()
    if argument.kind is tuple:
        return f"{name}..."
    return name if argument.required else f"[{name}]"


def _text(default: object) -> str:
    if isinstance(default, list | tuple):
        return ",".join(map(str, default))
    return "" if default is None or default is False else str(default)


def _group_help(group: Group, program: str) -> str:
    lines = [f"usage: {program} [--version] COMMAND [--help | ...]", "", group.about, "", "commands:"]
    width = max(map(len, group.commands)) + 2
    for name, command in group.commands.items():
        if _is_available(command):
            lines.append(f"  {name:<{width}}{load(command).about.splitlines()[0]}")
    if group.default is not None:
        lines += ["", _help(group.default, program)]
    return "\n".join(lines)
