"""The progress bar shows where somebody watches, and wipes its line."""

import contextlib
import io
import sys
import time
import types

import pytest
import torch

import layerlens
from layerlens import progress

IDS = torch.tensor([[3, 1, 4]])


class Bar:
    def update(self, count):
        pass


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_nobody_watches_nothing_is_written(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "WAIT", 0.0)
    assert [item for item in progress.track([1, 2, 3], "work") if not time.sleep(0.15)] == [1, 2, 3]
    assert stream.getvalue() == ""


def test_a_notebook_sees_the_bar(monkeypatch):
    shown = []
    monkeypatch.setattr(progress, "IN_NOTEBOOK", True)
    monkeypatch.setattr(progress, "tqdm", lambda **given: shown.append(given) or contextlib.nullcontext(Bar()))
    assert list(progress.track([1, 2, 3], "some_work")) == [1, 2, 3]
    assert shown[0]["desc"] == "some work" and shown[0]["total"] == 3


@pytest.mark.parametrize("asked, seen", [(True, 1), (False, 0)])
def test_a_notebook_that_nobody_watches_keeps_no_bar(monkeypatch, asked, seen):
    shell = types.SimpleNamespace(get_parent=lambda: {"content": {"allow_stdin": asked}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    shown = []
    monkeypatch.setattr(progress, "IN_NOTEBOOK", True)
    monkeypatch.setattr(progress, "tqdm", lambda **given: shown.append(given) or contextlib.nullcontext(Bar()))
    assert list(progress.track([1, 2, 3], "work")) == [1, 2, 3]
    assert len(shown) == seen
    assert list(progress.track([1], "work", enabled=True)) == [1] and len(shown) == seen + 1


def test_a_terminal_sees_the_count_and_a_clean_line(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "WAIT", 0.0)
    assert [item for item in progress.track(range(4), "some_work") if not time.sleep(0.15)] == [0, 1, 2, 3]
    assert "some work:" in stream.getvalue() and "/4" in stream.getvalue()
    assert stream.getvalue().endswith("\r") and stream.getvalue().split("\r")[-2].strip() == ""


def test_nested_bars_do_not_share_a_line(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    for _ in progress.track(range(2), "outer", enabled=True):
        for _ in progress.track(range(2), "inner", enabled=True):
            pass
    assert "outer:" in stream.getvalue() and "\n" in stream.getvalue() and "inner:" in stream.getvalue()


@pytest.mark.parametrize("method", ["integrated_gradients", "blur_ig", "rise", "smooth_grad", "leave_one_out", "auto"])
def test_every_long_method_shows_its_progress_when_asked(method, monkeypatch):
    net, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2)), torch.rand(2, 3, 8, 8)
    if method == "leave_one_out":
        net, x = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten(), torch.nn.Linear(12, 2)), IDS
    for shown in (True, False, None):
        stream = io.StringIO()
        monkeypatch.setattr("sys.stderr", stream)
        layerlens.saliency(net, x, target=0, method=method, progress=shown)
        assert bool(stream.getvalue()) == bool(shown)
        if method != "auto":
            getattr(layerlens.Lens(net).saliency, method)(x, target=0, progress=shown)
            assert (len(stream.getvalue().split("\r")) > 2) == bool(shown)


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
