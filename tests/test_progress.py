"""The progress bar shows where somebody watches, and wipes its line."""

import io

import pytest

from layerlens import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_nobody_watches_nothing_is_written(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    assert list(progress.track([1, 2, 3], "work")) == [1, 2, 3]
    assert stream.getvalue() == ""


def test_a_terminal_sees_the_count_and_a_clean_line(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "WAIT", 0.0)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    assert list(progress.track(range(4), "work")) == [0, 1, 2, 3]
    assert "work  [##########" in stream.getvalue() and "2/4" in stream.getvalue()
    assert stream.getvalue().endswith("\r") and stream.getvalue().split("\r")[-2].strip() == ""


def test_ctrl_c_wipes_the_line(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with pytest.raises(KeyboardInterrupt):
        for item in progress.track(iter(range(9)), "work", enabled=True):
            if item == 2:
                raise KeyboardInterrupt
    assert stream.getvalue().split("\r")[-2].strip() == ""


def test_short_work_shows_nothing(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    assert list(progress.track([1], "work")) == [1]
    assert stream.getvalue() == ""
