"""Interrupts and threads: what is begun is finished, and one thread at a time runs an analysis."""

import contextlib
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import layerlens
from layerlens import Lens, Probe, borrowed, turns
from layerlens.errors import LayerLensError
from tests.cases import normal
from tests.snapshot import Snapshot


class Hit(KeyboardInterrupt):
    """What the handler of a test raises."""


@pytest.fixture
def handler():
    """Set the handler of a signal that the tests send."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda function: signal.signal(signal.SIGUSR1, function)
    signal.signal(signal.SIGUSR1, before)


def hit(number, frame):
    raise Hit


def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 2)).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    return model


class Calling(nn.Module):
    """Calls a function whenever it runs."""

    def __init__(self, function):
        super().__init__()
        self.inner, self.function = small(), function

    def forward(self, x):
        self.function()
        return self.inner(x)


def interrupted_at(step, run):
    """Run with a signal before the given step of Python inside of layerlens; returns whether there was one."""
    left, sent = step, False

    def trace(frame, event, arg):
        nonlocal left, sent
        frame.f_trace_opcodes = True
        if frame.f_globals.get("__name__", "").partition(".")[0] not in ("layerlens", "contextlib"):
            return trace
        if event == "opcode":
            left -= 1
            if left == 0:
                sent = True
                sys.settrace(None)
                frame.f_trace = None
                signal.raise_signal(signal.SIGUSR1)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return sent


def probed(model, x):
    with Probe(model):
        model.double  # noqa: B018


def borrowed_block(model, x):
    with borrowed(model):
        model.double  # noqa: B018


RUNS = [probed, borrowed_block, layerlens.capture, lambda model, x: layerlens.saliency(model, x, method="gradient")]


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS, ids=["probe", "borrowed", "capture", "gradient"])
def test_an_interrupt_at_any_step_leaves_nothing_changed(handler, run):
    handler(hit)
    x, model = normal(2, 3), small()
    run(model, x)
    stride = int(os.environ.get("INTERRUPT_STRIDE", 23))
    hits, step = 0, 1
    while True:
        before = Snapshot(model, x)
        try:
            sent = interrupted_at(step, lambda: run(model, x))
            assert not sent, f"the interrupt of step {step} is lost"
            break
        except Hit:
            hits += 1
        before.check()
        assert signal.getsignal(signal.SIGUSR1) is hit
        step += stride
    assert hits > 100


def test_an_interrupt_waits_for_the_next_pass_and_is_raised_once(handler):
    passes = []

    def strike():
        passes.append(1)
        if len(passes) == 1:
            signal.raise_signal(signal.SIGUSR1)

    handler(hit)
    model, x = Calling(strike), normal(2, 3)
    before = Snapshot(model, x)
    with pytest.raises(Hit):
        layerlens.saliency(model, x, method="smooth_grad", samples=50, batch_size=2)
    assert len(passes) == 1
    before.check()
    layerlens.capture(model, x)
    assert signal.getsignal(signal.SIGUSR1) is hit


def test_an_error_of_a_handler_is_not_taken_for_one_of_the_model(handler):
    def late(number, frame):
        raise TimeoutError("too late")

    handler(late)
    x = normal(2, 3)
    data = [(row, 0) for row in x]
    model = Calling(lambda: signal.raise_signal(signal.SIGUSR1))
    with pytest.raises(TimeoutError, match="too late"):
        layerlens.saliency(model, x, target=1)
    with pytest.raises(TimeoutError, match="too late"):
        layerlens.over(model, data, on_error="record").capture("inner.0")


def test_a_handler_that_raises_nothing_runs_at_once(handler):
    seen = []
    handler(lambda number, frame: seen.append(number))

    def strike():
        signal.raise_signal(signal.SIGUSR1)
        assert seen

    layerlens.capture(Calling(strike), normal(2, 3))


def test_a_model_that_hangs_can_be_interrupted(handler, monkeypatch):
    monkeypatch.setattr(turns, "GRACE", 0.01)
    handler(hit)

    def hang():
        signal.raise_signal(signal.SIGUSR1)
        time.sleep(30)

    model, x = Calling(hang), normal(2, 3)
    before = Snapshot(model, x)
    with pytest.raises(Hit):
        layerlens.relevance(model, x, target=1)
    before.check()


def test_the_block_of_a_probe_is_interrupted_at_once(handler):
    handler(hit)
    model = small()
    before = Snapshot(model, None)
    with pytest.raises(Hit), Probe(model):
        with contextlib.suppress(ValueError):
            signal.raise_signal(signal.SIGUSR1)
        pytest.fail("it was held back")
    before.check()


def test_threads_get_the_numbers_of_one_after_another():
    models = [small(), small(), nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))]
    methods = ["gradient", "integrated_gradients", "deep_lift", "smooth_grad"]
    jobs = [(k % 3, methods[k % 4], k) for k in range(12)]

    def work(job):
        index, method, seed = job
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
        if seed % 5 == 0:
            with pytest.raises(LayerLensError):
                Lens(models[index]).saliency(x[:, :2], target=1, method=method)
        return Lens(models[index]).saliency(x, target=1, method=method).values

    expected = [work(job) for job in jobs]
    before = [Snapshot(model, None) for model in models]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, jobs))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    for snapshot in before:
        snapshot.check()


def test_a_forward_may_analyze_another_model_in_its_thread():
    other, x = small(), normal(2, 3)
    layerlens.capture(Calling(lambda: layerlens.relevance(other, x, target=1)), x)


def test_a_thread_that_a_forward_waits_for_is_refused(monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE", 0.1)
    other, x = small(), normal(2, 3)

    def wait():
        with ThreadPoolExecutor(1) as pool:
            pool.submit(layerlens.relevance, other, x, target=1).result()

    with pytest.raises(LayerLensError, match="must not wait for a thread"):
        layerlens.capture(Calling(wait), x)
    thread = threading.Thread(target=layerlens.capture, args=(other, x))
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
