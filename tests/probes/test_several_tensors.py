"""Layers that return several tensors: read and edited whole, or by name; oracles by hand-written hooks."""

import pytest
import torch
from torch import nn

from layerlens import Lens, Record, capture, errors, select
from layerlens.edits import add, mean, patch, replace, resample, scale, zero
from layerlens.model.layers import Layers
from layerlens.model.tensors import tensors_of
from tests.several_tensors import PACKED, flat, pair, two_heads
from tests.snapshot import Snapshot

RNNS = {
    "lstm": {},
    "gru": {"kind": nn.GRU},
    "rnn": {"kind": nn.RNN},
    "two layers": {"layers": 2},
    "time first": {"kind": nn.GRU, "batch_first": False},
    "bidirectional": {"bidirectional": True},
    "bidirectional gru, two layers": {"kind": nn.GRU, "bidirectional": True, "layers": 2},
}


def x_of_series():
    return torch.randn(4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def hooked(model, layer, change, x):
    """The output of `model` with a hook on a layer."""
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: change(output))
    try:
        with torch.no_grad():
            return model(x)
    finally:
        handle.remove()


EDITS = {
    "zero": zero(),
    "scale": scale(0.3),
    "replace": replace(0.7),
    "add": add(0.5),
    "mean": mean(),
    "resample": resample(seed=1),
    "samples": zero(samples=[0, -1]),
}


@pytest.mark.parametrize("rnn", RNNS)
@pytest.mark.parametrize("edit", EDITS)
def test_models_that_compute_one_function_are_edited_alike(rnn, edit):
    by_state, by_output = pair(**RNNS[rnn])
    x = x_of_series()
    torch.testing.assert_close(by_state(x), by_output(x))
    before = Snapshot(by_state, x)
    found = Lens(by_state).run(x, edits={"rnn": EDITS[edit]})
    before.check()
    torch.testing.assert_close(found, Lens(by_output).run(x, edits={"rnn": EDITS[edit]}))
    assert not torch.allclose(found, by_state(x))


@pytest.mark.parametrize("rnn", [name for name in RNNS if "bi" not in name])
def test_units_are_those_of_every_tensor(rnn):
    by_state, by_output = pair(**RNNS[rnn])
    x = x_of_series()
    found = [Lens(model).run(x, edits={"rnn": zero(units=[1, 3])}) for model in (by_state, by_output)]
    torch.testing.assert_close(found[0], found[1])

    def without(output):
        return (
            tuple(map(without, output)) if isinstance(output, tuple) else output.index_fill(-1, torch.tensor([1, 3]), 0)
        )

    torch.testing.assert_close(found[0], hooked(by_state, "rnn", without, x))


@pytest.mark.parametrize("rnn", RNNS)
def test_patches_are_of_every_tensor(rnn):
    by_state, by_output = pair(**RNNS[rnn])
    x = x_of_series()
    for model in (by_state, by_output):
        record = capture(model, x.flip(0), "rnn")
        torch.testing.assert_close(Lens(model).run(x, edits={"rnn": patch(record)}), model(x.flip(0)))
    record = capture(by_state, x.flip(0), "rnn/h_n")
    torch.testing.assert_close(Lens(by_state).run(x, edits={"rnn/h_n": patch(record)}), by_state(x.flip(0)))
    with pytest.raises(errors.SelectionError, match="Name one: 'rnn/output', 'rnn/h_n'"):
        Lens(by_state).run(x, edits={"rnn": patch(record)})


def test_a_part_that_is_not_the_same_in_all_tensors_is_refused():
    by_state, by_output = pair()
    x = x_of_series()
    with pytest.raises(
        errors.SelectionError, match=r"no axis of tokens or time steps.*Name one: 'rnn/output', 'rnn/h_n', 'rnn/c_n'"
    ):
        Lens(by_state).run(x, edits={"rnn": zero(positions=-1)})
    last = Lens(by_output).run(x, edits={"rnn/output": zero(positions=-1)})
    torch.testing.assert_close(last, Lens(by_output).run(x, edits={"rnn": zero()}))
    twice, _ = pair(bidirectional=True)
    with pytest.raises(errors.SelectionError, match="with 5 and 10 units"):
        Lens(twice).run(x, edits={"rnn": zero(units=1)})


@pytest.mark.parametrize("packed", PACKED)
def test_one_tensor_by_its_name(packed):
    model, x = two_heads(packed), torch.randn(3, 3, dtype=torch.float64)
    lens, names = Lens(model), PACKED[packed][1]
    with torch.no_grad():
        a, b = (tensor for tensor in flat(model.block(x)) if tensor is not None)
        alone = [model.one(a * 0) + model.two(b), model.one(a) + model.two(b * 0)]
        both = model.one(a * 0) + model.two(b * 0)
    record = lens.capture(x, "block")
    for name, expected, tensor in zip(names, alone, (a, b), strict=True):
        torch.testing.assert_close(lens.run(x, edits={f"block/{name}": zero()}), expected)
        torch.testing.assert_close(lens.run(x, edits={f"block/{name}": lambda t: t * 0}), expected)
        torch.testing.assert_close(lens.run(x, edits={f"block#0/{name}": zero()}), expected)
        torch.testing.assert_close(record[f"block/{name}"], tensor)
        torch.testing.assert_close(lens.capture(x, f"block/{name}")["block"], tensor)
    torch.testing.assert_close(lens.run(x, edits={"block": zero()}), both)
    torch.testing.assert_close(lens.run(x, edits={f"block/{name}": zero() for name in names}), both)
    torch.testing.assert_close(lens.run(x, edits={"block": patch(record)}), model(x))
    assert list(record.calls("block")[0].tensors) == list(names)
    with pytest.raises(errors.SelectionError, match=f"no tensor 'third' .*'block/{names[0]}', 'block/{names[1]}'"):
        lens.run(x, edits={"block/third": zero()})
    with pytest.raises(errors.SelectionError, match="'one' returned one tensor: name it 'one'"):
        lens.run(x, edits={"one/0": zero()})


def test_attention_with_its_weights():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double().eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    lens = Lens(attention, forward=lambda model, x: model(x, x, x))
    assert list(tensors_of(attention, attention(x, x, x))) == ["attn_output", "attn_output_weights"]
    output, weights = lens.run(x, edits={"/attn_output_weights": zero(positions=1)})
    torch.testing.assert_close(output, attention(x, x, x)[0])
    assert not weights[:, 1].any() and bool((weights[:, 0].sum(1) > 0.99).all())
    output, weights = lens.run(x, edits={"": zero()})
    assert not output.any() and not weights.any()
    with pytest.raises(errors.SelectionError, match=r"'attn_output_weights' cannot be changed alike.*no axis of units"):
        lens.run(x, edits={"": zero(units=1)})


def test_gradients_by_name():
    by_state, by_output = pair()
    x = x_of_series()
    states = capture(by_state, x, "rnn", gradients=True, target=0).calls("rnn")[0].gradient
    outputs = capture(by_output, x, "rnn", gradients=True, target=0).calls("rnn")[0].gradient
    assert list(states) == ["h_n"] and list(outputs) == ["output"]
    torch.testing.assert_close(states["h_n"][-1], by_state.fc.weight[0].detach().expand(4, 5))
    torch.testing.assert_close(states["h_n"][-1], outputs["output"][:, -1])
    assert states["1/0"] is states["h_n"]
    with pytest.raises(errors.RecordError, match="'c_n' is not there; name one of: 'h_n'"):
        _ = states["c_n"]


def test_selections_name_tensors():
    model = two_heads("dict")
    assert select(model, "block/first").tensors == {"block": frozenset({"first"})}
    assert select(model, ["block/first", "block/second"]).tensors == {"block": frozenset({"first", "second"})}
    assert select(model, ["block/first", "block"]).tensors == {"block": None}
    assert "block#1/first" in repr(select(model, "block#1/first"))
    assert list(select(model, "b*/first")) == ["block"]
    with pytest.raises(errors.SelectionError, match="other tensors of other calls"):
        select(model, ["block#0/first", "block#1/second"])
    with pytest.raises(errors.LayerNotFound, match="no layer 'blok'"):
        select(model, "blok/first")
    with pytest.raises(errors.SelectionError, match="names a tensor, but a layer is needed"):
        Layers(model).select("block/first")


def test_a_layer_whose_name_holds_a_slash():
    net = nn.Sequential()
    net.add_module("a/b", nn.LSTM(2, 3))
    x = torch.randn(4, 2, 2)
    output, (h, _) = Lens(net).run(x, edits={"a/b/h_n": zero()})
    assert output.any() and not h.any()
    assert capture(net, x, "a/b")["a/b/c_n"].shape == (1, 2, 3)


def test_records_keep_the_names(tmp_path):
    by_state, _ = pair()
    record = capture(by_state, x_of_series(), "rnn")
    again = Record.load(record.save(tmp_path / "record"))
    assert list(again.calls("rnn")[0].tensors) == ["output", "h_n", "c_n"]
    torch.testing.assert_close(again["rnn/c_n"], record["rnn"][1][1])
    torch.testing.assert_close(record.samples([1])["rnn/h_n"], record["rnn/h_n"][:, [1]])


def test_two_edits_of_two_tensors():
    by_state, _ = pair()
    x = x_of_series()
    found = Lens(by_state).run(x, edits={"rnn/h_n": scale(2.0), "rnn/c_n": zero(), "rnn/output": zero()})
    torch.testing.assert_close(found, hooked(by_state, "rnn", lambda out: (out[0], (out[1][0] * 2, out[1][1])), x))
    with pytest.raises(errors.OptionError, match="two edits name layer 'rnn/h_n'"):
        Lens(by_state).run(x, edits={"rnn": zero(), "rnn/h_n": zero()})
    with pytest.raises(errors.OptionError, match="the edit of 'rnn/h_n' returned NoneType"):
        Lens(by_state).run(x, edits={"rnn/h_n": lambda t: None})


def test_arguments_are_named_as_well():
    from layerlens import Probe

    torch.manual_seed(0)
    layer, a, b = nn.Bilinear(2, 2, 1), torch.randn(3, 2), torch.randn(3, 2)
    with torch.no_grad():
        with Probe(layer, (), arguments={"/0/1": scale(2.0)}):
            torch.testing.assert_close(layer(a, b), layer.forward(a, 2 * b))
        with (
            pytest.raises(
                errors.SelectionError, match=r"took several tensors, and one is needed here. Name one: '/0/0', '/0/1'"
            ),
            Probe(layer, (), arguments={"": zero()}),
        ):
            layer(a, b)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2).eval()
    padding = torch.zeros(2, 8, dtype=torch.bool)
    padding[1, 5:] = True
    return model, {"src": torch.randn(2, 8, 16), "src_key_padding_mask": padding}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    "edit",
    [zero(), zero(positions=2), scale(0.5), zero(units=[1]), add(torch.arange(16.0)), zero(samples=1, units=0),
     mean(units=[1], positions=[0, 4]), resample(positions=range(5)), zero(heads=(1, 4))],
)  # fmt: skip
def test_nested_tensors_are_edited_as_dense_ones(encoder, edit):
    model, x = encoder
    lens, found = Lens(model), {}
    for nested in (True, False):
        model.use_nested_tensor = nested
        before = Snapshot(model, x)
        found[nested] = lens.run(x, edits={"layers.0": edit})
        before.check()
    real = ~x["src_key_padding_mask"]
    torch.testing.assert_close(found[True][real], found[False][real], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[True][real], lens.run(x)[real], atol=1e-3)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_samples_of_different_lengths(encoder):
    model, x = encoder
    lens = Lens(model)
    with pytest.warns(UserWarning, match="different lengths.*keeps its own"):
        lens.run(x, edits={"layers.0": resample()})
    with pytest.raises(errors.OptionError, match="count positions= from the start"):
        lens.run(x, edits={"layers.0": zero(positions=-1)})
    record = lens.capture({name: value.flip(0) for name, value in x.items()}, "layers.0")
    with pytest.warns(UserWarning, match="different lengths"):
        patched = lens.run(x, edits={"layers.0": patch(record)})
    assert not torch.allclose(patched[:, :5], lens.run(x)[:, :5])
    model.use_nested_tensor = False
    with pytest.raises(errors.OptionError, match="different lengths in the record"):
        lens.run(x, edits={"layers.0": patch(record)})


def test_jagged_tensors_are_edited():
    class Jagged(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(3, 3)

        def forward(self, x):
            nested = torch.nested.nested_tensor([x[0], x[1, :2]], layout=torch.jagged)
            return torch.nested.to_padded_tensor(self.mix(nested) * 2, 0.0)

    torch.manual_seed(0)
    model, x = Jagged(), torch.randn(2, 4, 3)
    found, plain = Lens(model).run(x, edits={"mix": zero(units=1)}), Lens(model).run(x)
    assert not found[..., 1].any()
    torch.testing.assert_close(found[..., [0, 2]], plain[..., [0, 2]])
