"""Ctrl-C at a random moment of every analyzer, of `over` and of `report`: nothing is left changed."""

import os
import random
import signal
import time

import pytest
import torch

import layerlens
from tests.analyzers.test_every_analyzer import ANALYZERS, messy, quiet
from tests.cases import CASES
from tests.snapshot import Snapshot

COUNT = int(os.environ.get("INTERRUPTS", 120))
"""Interrupts of each analyzer; more by hand: `INTERRUPTS=1000 pytest -m slow tests/analyzers/test_interrupts.py`."""
LONG = {
    *("linear_probe", "compare", "generalization_gap", "geometry", "nonlinearity", "compare_groups", "health"),
    *("ablate", "attack_curve"),
}
"""Analyzers that get a sixth of them."""
RECURRENT = {"recurrent_states", "logit_lens"}
"""Analyzers that need more than layers one after another."""


class Hit(KeyboardInterrupt):
    """What the handler raises."""


def over_data(model, x, target):
    """An analysis of every sample of a data set."""
    data = [(row, 0) for row in x]
    layerlens.over(model, data, batch_size=1, progress=False).relevance(target=target)


def reported(tmp_path):
    """A report of a short selection of samples."""

    def report(model, x, target):
        layerlens.Lens(model).report(x[:1], path=tmp_path / "report.html", targets=target, methods=["gradient"])

    return report


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ANALYZERS, "over", "report"])
def test_an_interrupt_at_a_random_moment_leaves_nothing_changed(name, tmp_path):
    run = {**ANALYZERS, "over": over_data, "report": reported(tmp_path)}[name]
    case = CASES["lstm" if name in RECURRENT else "cnn"]
    count = COUNT // 30 if name == "report" else COUNT // 6 if name in LONG else COUNT

    def strike(number, frame):
        raise Hit

    former = signal.signal(signal.SIGALRM, strike)
    draw = random.Random(0)
    hits = 0
    try:
        model, x = messy(case.name), case.example()
        with quiet():
            run(model, x, case.target)
            start = time.perf_counter()
            run(model, x, case.target)
            seconds = time.perf_counter() - start
            for _ in range(3 * count):
                before = Snapshot(model, x)
                try:
                    signal.setitimer(signal.ITIMER_REAL, max(1e-5, draw.random() * seconds))
                    run(model, x, case.target)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Hit:
                    hits += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
                before.check()
                if hits == count:
                    break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    print(f"{name}: {hits} interrupts, {1000 * seconds:.0f} ms a call")
    assert hits > count // 2
    assert torch.is_grad_enabled()
