import itertools
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

import layerlens
from layerlens.analyzers.activation import recurrent_states
from layerlens.errors import RecordError, SelectionError
from tests.cases import normal
from tests.snapshot import Snapshot

KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN, "ReLU": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k)}


def seeded(make, *args, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make(*args, **options).double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("layers", "both", "first", "bias"),
    list(itertools.product((1, 3), (False, True), (False, True), (False, True)))[::3],
)
def test_the_states_are_those_of_the_module(kind, layers, both, first, bias):
    module = seeded(KINDS[kind], 3, 5, layers, bidirectional=both, batch_first=first, bias=bias, dropout=0.0)
    x = normal(2, 7, 3).double()
    states = recurrent_states(module, x if first else x.transpose(0, 1))
    output, last = module(x if first else x.transpose(0, 1))
    output = output if first else output.transpose(0, 1)
    top = [states.of("hidden", layers - 1, reverse=way) for way in ((False, True) if both else (False,))]
    assert torch.allclose(torch.cat(top, dim=-1), output, atol=1e-12, rtol=0)
    assert float(states.checks["difference"].max()) < 1e-12
    ends = torch.stack(
        [
            states.of(name, index, reverse=way)[:, 0 if way else -1]
            for name in (["hidden", "cell"] if kind == "LSTM" else ["hidden"])
            for index in range(layers)
            for way in ((False, True) if both else (False,))
        ]
    )
    expected = torch.cat(last) if kind == "LSTM" else last
    assert torch.allclose(ends, expected, atol=1e-12, rtol=0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_the_gates_of_an_lstm_written_out():
    """The equations of torch.nn.LSTM with its weights in the order W_ii, W_if, W_ig, W_io."""
    module = seeded(nn.LSTM, 3, 2, batch_first=True)
    x = normal(1, 4, 3).double()
    states = recurrent_states(module, x)
    weights = {name: part.detach().numpy() for name, part in module.named_parameters()}
    h, c = np.zeros(2), np.zeros(2)
    for t in range(4):
        parts = {}
        for place, name in enumerate(("input_gate", "forget_gate", "cell_gate", "output_gate")):
            rows = slice(2 * place, 2 * place + 2)
            total = weights["weight_ih_l0"][rows] @ x[0, t].numpy() + weights["bias_ih_l0"][rows]
            total += weights["weight_hh_l0"][rows] @ h + weights["bias_hh_l0"][rows]
            parts[name] = np.tanh(total) if name == "cell_gate" else sigmoid(total)
        c = parts["forget_gate"] * c + parts["input_gate"] * parts["cell_gate"]
        h = parts["output_gate"] * np.tanh(c)
        for name, value in {**parts, "cell": c, "hidden": h}.items():
            np.testing.assert_allclose(states.of(name)[0, t].numpy(), value, atol=1e-14)


def test_the_gates_of_a_gru_written_out():
    module = seeded(nn.GRU, 3, 2, batch_first=True)
    x, h = normal(1, 3, 3).double(), np.zeros(2)
    states = recurrent_states(module, x)
    w, b = module.weight_ih_l0.detach().numpy(), module.bias_ih_l0.detach().numpy()
    u, d = module.weight_hh_l0.detach().numpy(), module.bias_hh_l0.detach().numpy()
    for t in range(3):
        ours, theirs = w @ x[0, t].numpy() + b, u @ h + d
        r, z = sigmoid(ours[:2] + theirs[:2]), sigmoid(ours[2:4] + theirs[2:4])
        n = np.tanh(ours[4:] + r * theirs[4:])
        h = (1 - z) * n + z * h
        for name, value in (("reset_gate", r), ("update_gate", z), ("new_gate", n), ("hidden", h)):
            np.testing.assert_allclose(states.of(name)[0, t].numpy(), value, atol=1e-14)


class Stepped(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_cell_in_a_loop_is_the_layer(kind):
    module, cell = seeded(KINDS[kind], 3, 4, batch_first=True), seeded(getattr(nn, f"{kind}Cell"), 3, 4)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in module.state_dict().items()})
    x = normal(2, 6, 3).double()
    whole, stepped = recurrent_states(module, x), recurrent_states(Stepped(cell), x)
    assert stepped.kind == f"{kind}Cell" and stepped.lengths.tolist() == [6, 6]
    assert whole.quantities == stepped.quantities
    for name in whole.quantities:
        assert torch.allclose(whole.of(name), stepped.of(name), atol=1e-13)
    assert float(stepped.checks["difference"].max()) < 1e-13


def test_projections_first_states_and_bare_sequences():
    module = seeded(nn.LSTM, 3, 6, 2, batch_first=True, proj_size=2, bidirectional=True)
    x, start = normal(2, 5, 3).double(), (normal(4, 2, 2, seed=1).double(), normal(4, 2, 6, seed=2).double())
    states = recurrent_states(module, (x, start))
    assert states.of("hidden").shape == (2, 5, 2) and states.of("cell").shape == (2, 5, 6)
    assert float(states.checks["difference"].max()) < 1e-13
    bare = recurrent_states(
        module, (x[1], (start[0][:, 1], start[1][:, 1])), forward=lambda model, x, state: model(x, state)
    )
    assert torch.allclose(bare.of("cell", 1, reverse=True), states.of("cell", 1, reverse=True)[1:], atol=1e-13)
    assert float(bare.checks["difference"].max()) < 1e-13


class Packs(nn.Module):
    def __init__(self, rnn, lengths, enforce=False):
        super().__init__()
        self.rnn, self.lengths, self.enforce = rnn, lengths, enforce

    def forward(self, x):
        packed = pack_padded_sequence(x, self.lengths, batch_first=True, enforce_sorted=self.enforce)
        return pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_packed_sequence_is_its_samples_one_by_one(kind):
    module = seeded(KINDS[kind], 3, 4, 2, batch_first=True, bidirectional=True)
    samples = [normal(count, 3, seed=count).double() for count in (3, 6, 4)]
    together = recurrent_states(Packs(module, [3, 6, 4]), pad_sequence(samples, batch_first=True))
    assert together.lengths.tolist() == [3, 6, 4] and float(together.checks["difference"].max()) < 1e-13
    for row, sample in enumerate(samples):
        alone = recurrent_states(module, sample[None])
        for run, parts in alone.states.items():
            for name, values in parts.items():
                joint = together.states[run][name][row]
                assert torch.allclose(joint[: len(sample)], values[0], atol=1e-13)
                assert joint[len(sample) :].isnan().all()


def test_the_model_comes_back_and_train_mode_does_not_matter():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.LSTM(3, 4, 2, dropout=0.5, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.rnn(x)[0][:, -1])

    model, x = Net().double().train(), normal(2, 5, 3).double()
    before = Snapshot(model, x)
    states = recurrent_states(model, x)
    before.check()
    assert states.layer == "rnn" and float(states.checks["difference"].max()) < 1e-13
    assert torch.equal(layerlens.Lens(model).recurrent_states(x).of("cell", 1), states.of("cell", 1))


def test_saturation_counts_shut_and_open_gates():
    module = nn.GRU(1, 1, batch_first=True)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.bias_ih_l0[0] = 9.0  # the reset gate is open, the update gate at one half
    found = recurrent_states(module, torch.ones(1, 4, 1)).saturation()["layer 0"]
    assert found == {"reset_gate": (0.0, 1.0), "update_gate": (0.0, 0.0)}


def test_half_precision_is_computed_in_float32():
    module = nn.LSTM(3, 4, batch_first=True).bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        states = recurrent_states(module, normal(1, 4, 3).bfloat16())
    assert states.of("cell").dtype == torch.float32


def test_a_class_that_returns_something_else_is_told():
    class Doubled(nn.LSTM):
        def forward(self, x):
            output, state = super().forward(x)
            return 2 * output, state

    with pytest.warns(UserWarning, match="Doubled '' returned values that differ by"):
        states = recurrent_states(Doubled(2, 3), torch.ones(4, 1, 2))
    assert states.kind == "LSTM"


def test_what_cannot_be_is_said():
    two = nn.Sequential(nn.LSTM(2, 2), nn.LSTM(2, 2))
    with pytest.raises(SelectionError, match="the model holds 2 recurrent layers, one is needed: 0, 1"):
        recurrent_states(two, torch.ones(2, 1, 2))
    with pytest.raises(SelectionError, match=r"the model holds no nn\.LSTM"):
        recurrent_states(nn.Linear(2, 2), torch.ones(2, 2))
    module = nn.GRU(2, 2)
    with pytest.raises(RecordError, match="there is no call 3"):
        recurrent_states(module, torch.ones(2, 1, 2), call=3)
    states = recurrent_states(module, torch.ones(2, 1, 2))
    with pytest.raises(RecordError, match=r"GRU '' has no 'layer 1 reverse'\. There are: layer 0"):
        states.of("hidden", 1, reverse=True)
    with pytest.raises(RecordError, match="a GRU has no 'forget_gate'"):
        states.of("forget_gate")

    class Shrinks(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.RNNCell(2, 2)

        def forward(self, x):
            self.cell(x[:1])
            return self.cell(x)

    with pytest.raises(RecordError, match=r"the calls of cell 'cell' have 1, 3 samples"):
        recurrent_states(Shrinks(), torch.ones(3, 2))


@pytest.mark.slow
def test_the_speaker_encoder():
    from tests.real_models import speaker_encoder

    states = recurrent_states(speaker_encoder(), normal(2, 60, 40).abs())
    assert list(states.states) == ["layer 0", "layer 1", "layer 2"]
    assert float(states.checks["difference"].max()) < 1e-4  # float32; cells reach 6
    assert states.of("cell", 2).shape == (2, 60, 256)
