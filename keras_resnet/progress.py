"""Progress of long operations on standard error: a bar on a terminal, lines in a log file."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

_FIRST_SECONDS = 5.0  # until the first line
_LONGEST_SECONDS = 60.0  # between two lines

_Item = TypeVar("_Item")


class ProgressBar:
    """Counts what an operation has processed and estimates the time left, on standard error.

    On a terminal it is a bar. Otherwise, a line is printed after five seconds, and then at growing intervals
    of at most a minute.

    Args:
        total: number of items; None if it is unknown.
        unit: name of the items, in the plural.
        description: what is done, such as "evaluating"; begins each line.
        initial: number of items that were processed before.
        visible: whether to show anything; False for all workers but the chief.
        stream: where to write, instead of standard error.
    """

    def __init__(
        self,
        total: int | None,
        unit: str,
        description: str,
        *,
        initial: int = 0,
        visible: bool = True,
        stream: TextIO | None = None,
    ):
        stream = (stream or sys.stderr) if visible else None  # standard error is None if it is closed
        is_terminal = stream is not None and stream.isatty()
        self._total, self._unit, self._description = total, unit, description
        self._log = None if is_terminal else stream
        self._bar = None
        if is_terminal:
            self._bar = tqdm(
                desc=description,
                total=total,
                initial=initial,
                unit=f" {unit}",
                leave=None,  # a bar below another one is removed at its end
                dynamic_ncols=True,
                file=stream,
            )
        self._initial = self._done = initial
        self._begun, self._next_line = time.monotonic(), _FIRST_SECONDS

    def update(self, count: int = 1, note: str = "") -> None:
        """Adds to the number of processed items; `note` is shown behind it."""
        self._done += count
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        seconds = time.monotonic() - self._begun
        is_due = seconds >= self._next_line and self._done != self._total
        if self._log is not None and is_due:
            self._next_line = seconds + min(seconds, _LONGEST_SECONDS)
            with contextlib.suppress(OSError):  # the reader of a pipe may have ended
                print(self._line(seconds, note), file=self._log, flush=True)

    def track(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yields the items and counts each after it has been used; closes the bar at the end."""
        with self:
            for item in items:
                yield item
                self.update()

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _line(self, seconds: float, note: str) -> str:
        line = f"{self._description}: {self._done:,}"
        if self._total is None:
            line += f" {self._unit}"
        else:
            left = seconds * (self._total - self._done) / max(self._done - self._initial, 1)
            line += f" of {self._total:,} {self._unit}, {tqdm.format_interval(left)} left"
        return f"{line}, {note}" if note else line
