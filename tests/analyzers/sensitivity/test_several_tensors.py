"""Sensitivity of layers that return several tensors: changed whole, or by name, and read where the model reads."""

import pytest
import torch
from torch import nn

from layerlens import Lens, errors
from layerlens.edits import zero
from tests.several_tensors import PACKED, pair, two_heads

RNNS = {"lstm": {}, "gru": {"kind": nn.GRU}, "two layers": {"layers": 2}, "time first": {"batch_first": False}}


def series():
    return torch.randn(4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("rnn", RNNS)
def test_models_that_compute_one_function_are_ablated_alike(rnn):
    by_state, by_output = pair(**RNNS[rnn])
    x = series()
    for options in ({}, {"by": "channel"}, {"value": "mean"}, {"by": "channel", "value": "resample", "draws": 2}):
        found = [
            Lens(model).ablate(x, "rnn", target=0, metric="relative_change", **options)
            for model in (by_state, by_output)
        ]
        torch.testing.assert_close(found[0].values, found[1].values)
    without = Lens(by_state).run(x, edits={"rnn": zero(units=2)}) - by_state(x)
    channels = Lens(by_state).ablate(x, "rnn", by="channel", target=0)
    torch.testing.assert_close(channels.values[2], without[:, 0].mean())
    named = Lens(by_state).ablate(x, ["rnn/h_n", "rnn/output", "fc"], target=0)
    assert named.layers == ("rnn/output", "rnn/h_n", "fc") and float(named.values[0]) == 0
    torch.testing.assert_close(named.values[1], Lens(by_state).ablate(x, "rnn", target=0).values[0])
    for by in ("position", "unit"):
        assert Lens(by_output).ablate(x, "rnn", by=by, target=0).items[0].startswith("rnn ")


@pytest.mark.parametrize("rnn", RNNS)
def test_other_questions_read_the_tensor_that_is_read(rnn):
    by_state, by_output = pair(**RNNS[rnn])
    x = series()
    for model, name in ((by_state, "rnn/h_n"), (by_output, "rnn/output")):
        lens = Lens(model)
        bare, named = lens.jacobian(x, "rnn"), lens.jacobian(x, name)
        assert bare.layers == ("rnn",) and named.layers == (name,)
        torch.testing.assert_close(bare.values, named.values)
    if RNNS[rnn] == {}:
        with torch.no_grad():
            leaf = x[:1]
            jacobian = torch.autograd.functional.jacobian(lambda s: by_state.rnn(s)[1][0], leaf)
        found = Lens(by_state).jacobian(leaf, "rnn/h_n", relative=False, draws=4000)
        assert float(found.values) == pytest.approx(float(jacobian.norm()), rel=0.05)
    patched = [Lens(model).patch(x[:1], x[1:2], ["rnn"], by="layer", target=0) for model in (by_state, by_output)]
    torch.testing.assert_close(patched[0].values, patched[1].values)
    half = Lens(by_state).patch(x[:1], x[1:2], ["rnn/output", "rnn/h_n"], by="layer", target=0)
    assert dict(zip(half.layers, half.values.tolist(), strict=True))["rnn/output"] == 0


@pytest.mark.parametrize("packed", PACKED)
def test_tensors_of_a_block(packed):
    model, x = two_heads(packed), torch.randn(3, 3, dtype=torch.float64)
    names = [f"block/{name}" for name in PACKED[packed][1]]
    lens = Lens(model)
    both, one, two = (float(lens.ablate(x, layer, target=0).values) for layer in ("block", *names))
    assert both == pytest.approx(one + two)
    channels = lens.ablate(x, "block", by="channel", target=0)
    apart = [lens.ablate(x, name, by="channel", target=0) for name in names]
    torch.testing.assert_close(channels.values, apart[0].values + apart[1].values)
    assert apart[1].items[2] == f"{names[1]} channel 2"
    units = lens.ablate(x, "block", by="unit", target=0)
    assert [item.rpartition(" unit")[0] for item in units.items] == [names[0]] * 4 + [names[1]] * 4
    assert lens.jacobian(x, "block").layers == tuple(names)
    with pytest.raises(errors.SelectionError, match="no tensor 'third'"):
        lens.ablate(x, "block/third", target=0)


def test_tensors_with_other_units_are_not_cut_alike():
    class Uneven(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 2)

        def forward(self, x):
            return self.a(x), self.b(x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.fc = Uneven(), nn.Linear(4, 2)

        def forward(self, x):
            a, b = self.block(x)
            return self.fc(a) + b

    torch.manual_seed(0)
    lens, x = Lens(Net()), torch.randn(3, 3)
    with pytest.raises(errors.LayerNotFound, match="not all with the same units; name one: 'block/0', 'block/1'"):
        lens.ablate(x, "block", by="channel", target=0)
    assert lens.ablate(x, "block/1", by="channel", target=0).items == ("block/1 channel 0", "block/1 channel 1")
