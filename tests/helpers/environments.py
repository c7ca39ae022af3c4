"""Virtual environments with the wheel and some of its extras, and nothing else."""

import dataclasses
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = "keras-resnet-zoo"
EXTRAS = ("train", "export", "detection", "convert")
# Variables that would make an environment less clean: of Python, and of the packages.
_VARIABLES = ("PYTHON", "VIRTUAL_ENV", "KERAS_", "TF_", "TFDS_", "XDG_")
# What TensorFlow and absl write at their start. In the first detection, TensorFlow 2.18 also warns, even at
# log level 3, that it cannot estimate the cost of an operation.
_CHATTER = re.compile(
    r"^(?!.*op_level_cost_estimator)"
    r"(?:[IWEF]\d{4} |\d{4}-\d\d-\d\d |WARNING: All log|To enable the following).*",
    re.MULTILINE,
)


@dataclasses.dataclass(frozen=True)
class Environment:
    """A virtual environment with the wheel.

    Attributes:
        folder: of the environment.
        command: the first words of the installed command.
        home: the home folder, empty at first.
    """

    folder: Path
    command: tuple[Path, ...]
    home: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        (folder,) = self.folder.glob("lib/python*/site-packages")
        return folder

    def run(self, *words: str, cwd: Path, status: int = 0, **variables: str):
        """Runs the installed command, or Python if the first word is `-c`; checks the exit status.

        Also checks that TensorFlow writes nothing at the start of the command.
        """
        done = subprocess.run(
            [*([self.python] if words[0] == "-c" else self.command), *words],
            cwd=cwd,
            env={**_clean(), "HOME": str(self.home), **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert words[0] == "-c" or _CHATTER.findall(done.stderr) == [], done.stderr
        return done


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_VARIABLES)}


def install(home: Path, wheel: Path) -> Environment:
    """Makes an environment with pip, the wheel with `EXTRAS`, and JAX.

    It stays in build/, one for each Python and file of constraints: the next call installs what has changed.
    """
    python = os.environ.get("WHEEL_PYTHON", sys.executable)
    constraints = ROOT / os.environ.get("WHEEL_CONSTRAINTS", "constraints.txt")
    version = subprocess.check_output([python, "-c", "import platform; print(platform.python_version())"])
    made = _make(ROOT / "build" / f"{constraints.stem}-{version.decode().strip()}", home, python)
    pip = [made.python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wanted = [f"{wheel}[{','.join(EXTRAS)}]", "jax"]
    # pip would keep a wheel of the same version. Nothing is compiled that no test imports.
    for words in (
        ["uninstall", "--quiet", "--yes", NAME],
        ["install", "--no-compile", "--constraint", constraints, *wanted],
        ["check"],
    ):
        subprocess.run([*pip, *words], env=_clean(), check=True)
    return made


def with_extras(
    installed: Environment, folder: Path, wheel: Path, extras: tuple[str, ...], others: tuple[str, ...]
) -> Environment:
    """Makes an environment with the wheel, some extras, and the distributions `others`.

    What they require is linked from `installed`, which takes no time; the wheel is unpacked.
    """
    made = _make(folder / "venv", folder / "home", installed.python, "--without-pip")
    linker = Path(__file__).with_name("link_requirements.py")
    requirement = f"{NAME}[{','.join(extras)}]"
    words = [installed.python, linker, made.packages, requirement, *others]
    subprocess.run(words, env=_clean(), check=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(made.packages)
    return dataclasses.replace(made, command=(made.python, *installed.command))


def _make(folder: Path, home: Path, python: str | Path, *flags: str) -> Environment:
    home.mkdir()
    subprocess.run([python, "-m", "venv", *flags, folder], env=_clean(), check=True)
    return Environment(folder, (folder / "bin" / "keras-resnet",), home)
