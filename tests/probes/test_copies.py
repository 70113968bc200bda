"""Captures of models that overwrite what their layers returned: one run, and the values that raw hooks would clone."""

import gc
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerlens.errors import OverwrittenError
from layerlens.probes.probe import Probe
from layerlens.probes.run import capture
from tests.cases import normal


class Written(nn.Module):
    """Two layers; `write(first output, its input)` may write into it, and returns what the second takes."""

    def __init__(self, write):
        super().__init__()
        self.write, self.runs = write, 0
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        self.runs += 1
        return self.second(self.write(self.first(x), x))


@torch.library.custom_op("layerlens_tests::halve", mutates_args={"x"})
def halve(x: torch.Tensor) -> None:
    x.numpy()[:] *= 0.5


def add(y, x):
    y += x
    return y


def set_row(y, x):
    y[0] = 0.0
    return y


def written_view(y, x):
    y.view(-1)[:3].zero_()
    return y


def out(y, x):
    return torch.add(x, 1.0, out=y)


def custom(y, x):
    halve(y)
    return y


def foreach(y, x):
    torch._foreach_mul_([y, y.clone()], 3.0)
    return y


def data(y, x):
    y.data.clamp_(min=0)
    return y


WRITES = {
    "relu_": lambda y, x: F.relu_(y),
    "dropout": lambda y, x: F.dropout(y, 0.5, training=True, inplace=True),
    "module": lambda y, x: nn.Hardswish(inplace=True)(y),
    "add": add,
    "set row": set_row,
    "view": written_view,
    "out": out,
    "custom": custom,
    "foreach": foreach,
    "data": data,
}


def raw(model, x, paths=("first", "second")):
    """What hooks that clone at once see."""
    kept = {}
    modules = dict(model.named_modules())
    handles = [
        modules[path].register_forward_hook(lambda module, args, output, path=path: kept.update({path: output.clone()}))
        for path in paths
    ]
    with torch.random.fork_rng(), torch.no_grad():
        model(x.clone())
    for handle in handles:
        handle.remove()
    return kept


@pytest.mark.parametrize("way", WRITES)
def test_what_is_overwritten_is_copied_before_in_one_run(way):
    torch.manual_seed(0)
    model, x = Written(WRITES[way]).eval(), normal(3, 4)
    truth = raw(model, x)
    for number in range(3):  # the first run is watched, the next ones copy what it saw
        model.runs = 0
        record = capture(model, x)
        assert model.runs == (2 if (way, number) == ("custom", 0) else 1)  # counted as written before torch calls it
        assert all(torch.equal(record[path], value) for path, value in truth.items())
        assert not record.calls("first")[0].stored  # a copy
        assert record.calls("second")[0].stored  # nobody overwrites it


class Blocks(nn.Module):
    """One ReLU in place, called three times, of which the second call is overwritten; nested outputs, shared memory."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.act, self.pair, self.turn = nn.ReLU(inplace=True), Pair(), Turned()

    def forward(self, x):
        first = self.act(self.layers[0](x))
        second = self.act(self.layers[1](first))
        y, z = self.pair(second)
        turned = self.turn(self.act(self.layers[2](y["a"])))
        second -= 1.0
        z.neg_()
        turned.t()[0] = 5.0
        return turned.sum(), second, z


class Pair(nn.Module):
    def forward(self, x):
        return {"a": x + 1.0, "n": 3}, x * 2.0


class Turned(nn.Module):
    def forward(self, x):
        return x.t()


def tensors(value):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("options", [{}, {"inputs": True}])
def test_only_the_calls_and_tensors_that_are_overwritten_are_copied(options):
    torch.manual_seed(0)
    model, x, truth = Blocks().eval(), normal(3, 4), []
    handles = [
        module.register_forward_hook(
            lambda module, args, output: truth.append([part.clone() for part in tensors(output)])
        )
        for path, module in model.named_modules()
        if path
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    for _ in range(2):
        record = capture(model, x, **options)
        for call, values in zip(record.order, truth, strict=True):
            assert all(torch.equal(*pair) for pair in zip(tensors(call.output), values, strict=True)), call
        if options.get("inputs"):
            assert (record.calls("act")[2].inputs[0][0] < 0).any()  # as it was before
        elif not options:
            copied = {call.name for call in record.order if not call.stored}
            assert copied - {"pair#0"} == {"layers.0#0", "layers.1#0", "layers.2#0", "act#1", "act#2", "turn#0"}
    assert len(record.calls("pair")[0].tensors) == 2


def test_gradients_are_those_of_what_the_layer_returned():
    torch.manual_seed(0)
    model, x = Written(WRITES["relu_"]).eval(), normal(3, 4)
    want = raw(model, x)["first"]
    model.runs = 0
    for runs in (1, 2):
        call = capture(model, x, "first", gradients=True, target=1).calls("first")[0]
        assert torch.equal(call.output, want) and model.runs == runs
        torch.testing.assert_close(call.gradient, model.second.weight[1] * (want > 0))


def test_another_route_or_thread_that_writes_takes_a_second_run():
    model, x = Written(lambda y, x: y).eval(), normal(3, 4)
    assert capture(model, x).calls("first")[0].stored
    model.write, model.runs = WRITES["relu_"], 0
    truth = raw(model, x)
    model.runs = 0
    assert torch.equal(capture(model, x)["first"], truth["first"]) and model.runs == 2
    assert torch.equal(capture(model, x)["first"], truth["first"]) and model.runs == 3

    def elsewhere(y, x):
        thread = threading.Thread(target=y.zero_)
        thread.start()
        thread.join()
        return y

    model = Written(elsewhere).eval()
    assert capture(model, x)["first"].any() and model.runs == 2
    assert capture(model, x)["first"].any() and model.runs == 3


def test_a_smaller_selection_says_nothing_of_the_others():
    model, x = Written(WRITES["add"]).eval(), normal(3, 4)
    truth = raw(model, x)
    model.runs = 0
    capture(model, x, "second")
    assert torch.equal(capture(model, x)["first"], truth["first"]) and model.runs == 2


def test_calls_are_kept_as_they_are_named():
    model = Blocks().eval()
    with Probe(model, keep={"act": "clone", "layers.1#0": "cpu"}) as record:
        model(normal(3, 4))
    assert not any(call.stored for call in record.calls("act")) and record["layers.1"].shape == (3, 4)
    with pytest.raises(OverwrittenError):
        record["layers.0"]


def test_nothing_keeps_the_model_or_the_record_until_garbage_is_collected():
    model = Written(WRITES["add"]).eval()
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            record = capture(model, normal(3, 4), "*")
            gone = weakref.ref(model), weakref.ref(record)
            del record
            assert gone[1]() is None
        del model
        assert gone[0]() is None
    finally:
        gc.enable()
