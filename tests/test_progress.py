"""Progress of long operations: rare lines in a log file, a bar on a terminal."""

import io
import types

import pytest

from keras_resnet import progress
from keras_resnet.progress import ProgressBar


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, which a test may change."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_the_lines_of_a_log_file_become_rarer(clock):
    log, seconds = io.StringIO(), []
    bar = ProgressBar(1000, "images", "evaluating", stream=log)
    for second in range(1, 401):
        clock.now += 1
        before = log.getvalue()
        bar.update(2, "1 bad")
        if log.getvalue() != before:
            seconds.append(second)
    bar.close()
    assert seconds == [5, 10, 20, 40, 80, 140, 200, 260, 320, 380]
    assert log.getvalue().splitlines()[0] == "evaluating: 10 of 1,000 images, 08:15 left, 1 bad"


def test_what_was_done_before_does_not_count_for_the_time_left(clock):
    log = io.StringIO()
    bar = ProgressBar(1000, "images", "training", initial=900, stream=log)
    clock.now += 30
    bar.update(50)
    assert log.getvalue() == "training: 950 of 1,000 images, 00:30 left\n"


def test_short_and_finished_operations_and_other_workers_are_silent(clock):
    log = io.StringIO()
    assert list(ProgressBar(3, "images", "reading", stream=log).track("abc")) == ["a", "b", "c"]
    invisible = ProgressBar(9, "images", "reading", visible=False, stream=log)
    finished = ProgressBar(1, "images", "reading", stream=log)
    clock.now += 1000
    invisible.update()
    finished.update()
    assert log.getvalue() == ""


def test_items_count_after_they_are_used_and_their_number_may_be_unknown(clock):
    log = io.StringIO()
    for _ in ProgressBar(None, "batches", "comparing", stream=log).track(range(2)):
        clock.now += 6
        assert "2" not in log.getvalue()
    assert log.getvalue() == "comparing: 1 batches\ncomparing: 2 batches\n"


def test_a_log_that_cannot_be_written_does_not_end_the_operation(clock):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    bar = ProgressBar(9, "images", "reading", stream=Closed())
    clock.now += 10
    bar.update()


def test_a_terminal_has_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    with ProgressBar(4, "images", "decoding", stream=terminal) as bar:
        bar.update(3, "1 bad")
        bar.update(1, "2 bad")
    shown = terminal.getvalue()
    assert "decoding:" in shown
    assert "4/4" in shown
    assert " images/s" in shown
    assert "2 bad" in shown


def test_without_standard_error(monkeypatch):
    monkeypatch.setattr(progress.sys, "stderr", None)
    ProgressBar(2, "images", "reading").update()
