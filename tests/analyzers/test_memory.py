"""Nothing stays in memory: results are freed when they are dropped, and many calls keep no more than few."""

import gc
import os
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import layerlens
from tests.analyzers.test_every_analyzer import ANALYZERS, quiet
from tests.cases import CASES, normal

CALLS = int(os.environ.get("SOAK_CALLS", 50))
"""Calls of each analyzer; more by hand: `SOAK_CALLS=1000 pytest -m slow tests/analyzers/test_memory.py`."""
LONG = {
    *("linear_probe", "compare", "generalization_gap", "geometry", "nonlinearity", "compare_groups", "health"),
    *("ablate", "attack_curve", "attack_drift", "jacobian", "noise_response", "lipschitz", "patch"),
    *("sobol", "corruption_curve", "similarity", "feature_visualization"),
}  # fmt: skip
"""Analyzers that get a tenth of them."""


@pytest.mark.parametrize("options", [{}, {"keep": "clone"}, {"gradients": True, "target": 1}], ids=str)
def test_a_record_is_freed_when_it_is_dropped(options):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    layerlens.capture(model, normal(2, 3), **options)
    gc.collect()
    gc.disable()
    try:
        record = layerlens.capture(model, normal(2, 3), **options)
        tensors = [weakref.ref(record[layer]) for layer in record]
        tensors += [weakref.ref(call.gradient) for call in record.order if options.get("gradients")]
        del record
        assert all(tensor() is None for tensor in tensors)
    finally:
        gc.enable()


def test_the_gradients_of_a_probe_do_not_hold_its_graph():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with layerlens.Probe(model, gradients=True) as record:
        output = model(normal(2, 3))
        output.sum().backward()
    held = weakref.ref(record["1"])
    del record, output
    gc.collect()
    assert held() is None


def graphs():
    """The number of nodes of autograd's graphs that Python knows."""
    gc.collect()
    return sum(type(one).__name__.endswith("Backward0") for one in gc.get_objects())


@pytest.mark.parametrize("name", ["integrated_gradients", "smooth_grad", "relevance", "deep_lift"])
def test_no_graph_is_kept(name):
    case = CASES["cnn"]
    model, x = case.build(), case.example()
    with quiet():
        ANALYZERS[name](model, x, case.target)
        before = graphs()
        for _ in range(3):
            ANALYZERS[name](model, x, case.target)
    assert graphs() <= before


def resident():
    """The memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("name", list(ANALYZERS))
def test_many_calls_keep_no_more_than_few(name):
    case = CASES["cnn"]
    model, x = case.build(), case.example()
    calls = CALLS // 10 if name in LONG else CALLS
    with quiet():
        for _ in range(10 if name in LONG else 20):  # caches are filled
            ANALYZERS[name](model, x, case.target)
        gc.collect()
        objects, memory = len(gc.get_objects()), resident()
        for _ in range(calls):
            ANALYZERS[name](model, x, case.target)
        gc.collect()
        more, grown = len(gc.get_objects()) - objects, resident() - memory
    print(f"{name}: {calls} calls, {more:+d} objects, {grown:+.1f} MiB")
    assert more < 100 + calls / 4
    assert grown < 4 + calls * 0.02
    assert torch.is_grad_enabled()
