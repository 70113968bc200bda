import time

import pytest
import torch
from torch import nn

from layerlens.analyzers.structure.layer_table import layers
from layerlens.errors import OptionError
from layerlens.inputs.inputs import as_inputs
from layerlens.model.layers import Layers
from layerlens.model.trees import named_tensors
from layerlens.probes.run import capture
from tests.cases import CASES, normal


class Sleep(nn.Module):
    """Takes a known time and nothing else."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return x + 1


class Block(nn.Module):
    """Own time, one child called twice, and a child shared with others."""

    def __init__(self, shared):
        super().__init__()
        self.twice, self.shared = Sleep(0.02), shared

    def forward(self, x):
        time.sleep(0.04)
        return self.shared(self.twice(self.twice(x)))


def rows_of(table):
    return {row.path: row for row in table.rows}


def test_static_table():
    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 2, bias=False), nn.ReLU()))
    table = layers(net)
    assert [(row.path, row.type, row.parameters, row.own) for row in table.rows] == [
        ("", "Sequential", 24, 0),
        ("0", "Linear", 16, 16),
        ("1", "Sequential", 8, 0),
        ("1.0", "Linear", 8, 8),
        ("1.1", "ReLU", 0, 0),
    ]
    assert all(row.calls is None and row.share is None and row.output == "" for row in table.rows)
    assert table.milliseconds is None and table.device == "cpu" and table.model == "Sequential"


def test_tied_parameters_count_once():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert rows_of(layers(net))[""].parameters == 9 + 3 + 3


def test_every_case_has_its_calls_shapes_and_shares(case):
    model, x = case.build(), case.example()
    table, record = layers(model, x), capture(case.build(), x, lambda path, module: True)
    assert [row.path for row in table.rows] == list(Layers(model))
    assert sum(row.share or 0 for row in table.rows) == pytest.approx(1.0)
    assert table.milliseconds > 0
    for row in table.rows:
        if row.type in ("ModuleList", "ModuleDict"):  # has no forward, so it cannot run
            assert row.calls is None and row.share is None
        else:
            assert row.calls == len(record.calls(row.path)) and 0 <= row.share <= 1
    assert "Tensor" not in repr(table)


def test_own_time_is_time_without_the_children(monkeypatch):
    clock = [0.0]  # stands still between two naps
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    shared = Sleep(0.02)
    net = nn.Sequential(Block(shared), shared, Sleep(0.06))
    table = layers(net, normal(1, 1))
    rows = rows_of(table)
    total = table.milliseconds / 1000
    assert total == pytest.approx(0.04 + 2 * 0.02 + 2 * 0.02 + 0.06)
    expected = {"0": 0.04, "0.twice": 0.04, "0.shared": 0.04, "2": 0.06}
    for path, seconds in expected.items():
        assert rows[path].share * total == pytest.approx(seconds), path
    assert rows[""].share == pytest.approx(0, abs=1e-9)
    assert (rows["0.twice"].calls, rows["0.shared"].calls) == (2, 2)


def test_a_layer_that_returns_different_shapes_shows_them():
    class Reuses(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x):
            first, *_ = [self.relu(x[:, :n]) for n in (4, 3, 3, 2)]
            return first

    assert rows_of(layers(Reuses(), normal(2, 5)))["relu"].output == "(2, 4), (2, 3), ..."


def test_forward_may_call_parts_of_the_model():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    rows = rows_of(layers(net, normal(1, 2), forward=lambda model, x: model[0](x)))
    assert (rows["0"].calls, rows["1"].calls, rows[""].calls) == (1, 0, 0)
    assert rows["0"].share == 1.0 and rows["1"].output == ""


def test_the_model_is_given_back(hooks_of):
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x = as_inputs(normal(4, 3))
    layers(net, x)
    assert net.training and hooks_of(net) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_inputs_types_order_and_memory():
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True)), nn.Flatten(), nn.Linear(288, 5)
    ).double()
    table = layers(net, torch.zeros(2, 3, 8, 8, dtype=torch.float64))
    rows = {row.path: row for row in table.rows}
    assert [rows[path].input for path in ("", "0.0", "0.1", "2")] == [
        "(2, 3, 8, 8)", "(2, 3, 8, 8)", "(2, 8, 6, 6)", "(2, 288)",
    ]  # fmt: skip
    assert [rows[path].order for path in ("0.0", "0.1", "0", "1", "2", "")] == list(range(6))
    assert rows["2"].dtype == "float64"
    # the ReLU writes into its input and Flatten is a view: neither makes anything
    assert [rows[path].activation for path in ("0.0", "0.1", "1", "2")] == [2 * 8 * 36 * 8, 0, 0, 2 * 5 * 8]
    assert rows["0"].activation is None and table.activation == 2 * 8 * 36 * 8 + 80
    lines = table.tree(depth=1).splitlines()
    assert [line.split()[0] for line in lines] == ["path", "(model)", "0", "1", "2"]
    assert table.tree().splitlines()[3].startswith("    0 ") and "padding-left:2.5em" in table._repr_html_()
    assert set(table.to_pandas()) >= {"input", "dtype", "order", "activation"}


def made_by_hand(model, x):
    """Bytes that calls without calls inside return, each storage once and those of parameters left out; all kept."""
    inside, kept, handles = [], {}, []
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}

    def before(module, args):
        if inside:
            inside[-1] = True
        inside.append(False)

    def after(module, args, output):
        if not inside.pop():
            for _, tensor in named_tensors(output):
                storage = tensor.untyped_storage()
                kept[storage.data_ptr()] = (storage.nbytes(), tensor)

    for module in model.modules():
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    with torch.no_grad():
        as_inputs(x).run(model)
    for handle in handles:
        handle.remove()
    return sum(size for address, (size, _) in kept.items() if address not in own)


def test_memory_is_that_of_all_storages_together(case):
    table = layers(case.build(), case.example())
    assert table.activation == made_by_hand(case.build(), case.example())
    assert sum(row.activation for row in table.rows if row.activation is not None) == table.activation


def test_attention_without_calls_inside_makes_what_it_returns():
    case = CASES["encoder"]
    rows = rows_of(layers(case.build(), case.example()))
    assert rows["encoder.layers.0.self_attn"].activation == 2 * 6 * 8 * 4
    assert rows["encoder.layers.0"].activation is None


def test_a_cache_that_is_returned_twice_counts_once_and_parameters_not_at_all():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.seen = nn.Parameter(torch.ones(4)), None

        def forward(self, x):
            if self.seen is None or len(self.seen) != len(x):
                self.seen = x + 1
            return self.seen, self.table

    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.cache = Keeps()

        def forward(self, x):
            return self.cache(x)[0] + self.cache(x)[0]

    assert rows_of(layers(Asks(), normal(3, 5)))["cache"].activation == 3 * 5 * 4


def test_storages_that_follow_each_other_at_one_address_count_each():
    net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)))  # each output is freed before the next but one is made
    assert layers(net, normal(4, 64)).activation == 8 * 4 * 64 * 4


def test_all_inputs_and_their_types():
    case = CASES["two_inputs"]
    rows = rows_of(layers(case.build(), case.example()))
    assert rows[""].input == "(2, 1, 6, 6) + (2, 5)" and rows["fc"].input == "(2, 4) + (2, 6)"
    case = CASES["hf_bert"]
    table = layers(case.build(), case.example())
    row = rows_of(table)["bert.embeddings.word_embeddings"]
    assert (row.input, row.input_dtype, row.dtype) == ("(2, 6)", "int64", "float32")
    assert "int64 -> float32" in table.tree() and "int64 -&gt; float32" in table._repr_html_()


def test_the_flat_table_is_not_over_wide(case):
    assert max(map(len, repr(layers(case.build(), case.example())).splitlines())) <= 132


def test_the_table_shows_the_axes_of_every_layer():
    rows = {row.path: row.axes for row in layers(CASES["hf_vit"].build(), CASES["hf_vit"].example()).rows}
    assert rows["vit.layernorm"] == "batch | 1+height*width | unit" and rows["classifier"] == "batch | unit"
    assert rows["vit.embeddings.patch_embeddings.projection"] == "batch | unit | height | width"
    rows = {row.path: row.axes for row in layers(CASES["lstm"].build(), CASES["lstm"].example()).rows}
    assert rows["rnn"] == "output: batch | time | unit; h_n: layer | batch | unit; c_n: layer | batch | unit"


def test_a_table_can_be_cut_at_a_level_and_fits_a_terminal(monkeypatch):
    net = nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(2, 2))), nn.ReLU())
    table = layers(net, torch.zeros(1, 2), depth=1)
    assert [line.split()[0] for line in repr(table).splitlines()[2:]] == ["(model)", "0", "1"]
    assert len(table.rows) == 5 and "0.0" not in table._repr_html_().replace("0.0%", "") and "0.0" in repr(layers(net))
    assert len(table.tree().splitlines()) == 4 and len(table.tree(depth=2).splitlines()) == 5
    with pytest.raises(OptionError, match="depth must be a whole number of at least 1"):
        layers(net, depth=0)
    deep = nn.ModuleDict({"a_name_of_a_module_that_is_long": nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))})
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, repr(layers(deep)).splitlines()[1:])) <= 60
    assert (
        max(map(len, layers(deep).tree(width=100).splitlines())) <= 100 and "2" in repr(layers(deep)).splitlines()[-1]
    )
