"""Features of a basis as the parts of every analyzer: ablation, patching, relevance and steering."""

import copy

import pytest
import torch
from torch import nn

from layerlens import Basis, Lens, basis, feature_effects
from layerlens.errors import InputError, OptionError, SelectionError
from tests.analyzers.concepts.test_basis import Twice

pytest.importorskip("sklearn")


class SAE(nn.Module):
    """A sparse autoencoder with biases; `square` has a decoder that is not linear."""

    def __init__(self, units, features, square=False):
        super().__init__()
        self.enc, self.dec, self.square = nn.Linear(units, features), nn.Linear(features, units), square

    def encode(self, rows):
        return torch.relu(self.enc(rows))

    def decode(self, codes):
        return self.dec(codes.square() if self.square else codes)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 6), nn.Linear(6, 2)

    def forward(self, x):  # (batch, time, 3), and time first inside
        output, (state, _) = self.rnn(x.transpose(0, 1))
        return self.head(output.mean(dim=0) + state[0])


class Former(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.block = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, ids):
        return self.head(self.block(self.embed(ids)).mean(dim=1))


def convolutional():
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 2), nn.Flatten(), nn.Linear(12, 2)
    )
    net[1].running_mean.normal_(), net[1].running_var.uniform_(0.5, 2), nn.init.normal_(net[1].bias)
    return net


def case(name):
    """Model, input, where the basis is, module to hook, axis of units, and what of its output is replaced."""
    torch.manual_seed(3)
    if name == "cnn":
        net = convolutional().double().eval()
        return net, torch.randn(4, 2, 5, 5).double(), "2", net[2], 1
    if name == "lstm":
        net = Recurrent().double().eval()
        return net, torch.randn(4, 5, 3).double(), "rnn/output", net.rnn, 2
    net = Former().double().eval()
    return net, torch.randint(0, 11, (4, 5)), "block", net.block, 2


def made(kind, net, x, layer):
    if kind in ("pca", "nmf"):
        return basis(net, x, layer, method=kind, features=3)
    if kind == "directions":
        return Basis.of_directions(layer, {"first": torch.randn(6), "second": torch.randn(6)})
    return Basis(layer, SAE(6, 9, kind == "square").double())


def by_hand(net, x, module, axis, change):
    """Scores with `change(rows) -> rows` of what a module returned: encodes, edits, decodes and adds the error."""

    def hook(_, __, output):
        hidden = output[0] if isinstance(output, tuple) else output
        new = change(hidden.movedim(axis, -1)).movedim(-1, axis)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module.register_forward_hook(hook)
    with torch.no_grad():
        scores = net(x)[:, 1]
    handle.remove()
    return scores


CASES = [("cnn", "pca"), ("cnn", "nmf"), ("cnn", "square"), ("lstm", "sae"), ("transformer", "directions")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_ablation_and_patching_are_those_of_a_hook(name, kind):
    net, x, layer, module, axis = case(name)
    found = made(kind, net, x, layer)
    other = x.flip(0)
    clean, held = net(x)[:, 1].detach(), {}
    by_hand(net, other, module, axis, lambda rows: held.setdefault("rows", rows.clone()))
    code, decode = found.encode_last, found.decode_last
    with torch.no_grad():
        theirs = code(held["rows"])
        their_error = held["rows"] - decode(theirs, held["rows"])

    def edited(number, values, new_error=None):
        def change(rows):
            codes = code(rows)
            error = rows - decode(codes, rows) if new_error is None else new_error
            if number is not None:
                codes[..., number] = values(codes)[..., number]
            return decode(codes, rows) + error

        return by_hand(net, x, module, axis, change) - clean

    count = theirs.shape[-1]
    batch = 1 if name == "lstm" else 0
    zero = [edited(k, torch.zeros_like) for k in range(count)] + [edited(None, None, 0.0)]
    mean = [edited(k, lambda codes: codes.mean(dim=batch, keepdim=True).expand_as(codes)) for k in range(count)]
    swap = [edited(k, lambda codes: theirs) for k in range(count)] + [edited(None, None, their_error)]
    lens = Lens(net)
    state = copy.deepcopy(net.state_dict())
    taken = lens.ablate(x, found, target=1)
    torch.testing.assert_close(taken.checks["per sample"], torch.stack(zero), rtol=0, atol=1e-10)
    assert taken.items == (*(f"{layer} {found.label(k)}" for k in range(count)), f"{layer} error")
    assert taken.quantity.endswith("without the feature") and "one feature is replaced" in taken.explain()
    with pytest.warns(UserWarning, match="signed changes cancel"):
        to_mean = lens.ablate(x, found, target=1, value="mean")
    torch.testing.assert_close(to_mean.checks["per sample"][:-1], torch.stack(mean), rtol=0, atol=1e-10)
    patched = lens.patch(x, other, found, target=1, recovery=False)
    torch.testing.assert_close(patched.checks["per sample"], torch.stack(swap), rtol=0, atol=1e-10)
    assert all(torch.equal(one, two) for one, two in zip(state.values(), net.state_dict().values(), strict=True))

    screened = lens.ablate(x, found, target=1, count=2)
    assert len(screened.items) == 2 and set(screened.items) <= set(taken.items)
    if kind != "square":
        first = lens.ablate(x, found, target=1, screen="first_order").checks["first order"]
        rows = feature_effects(net, x, found, target=1)
        expected = torch.cat([rows.values[:count], rows.values[-1:]])
        torch.testing.assert_close(first, -expected.double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.filterwarnings("ignore:relevance. decode of:UserWarning")
def test_relevance_of_features_sums_to_that_of_the_layer(name, kind):
    net, x, layer, *_ = case(name)
    found = made(kind, net, x, layer)
    result = Lens(net).relevance(x, target=1, layers=[found, layer])
    rows = result.bases[layer]
    by_place = result.layers[layer][0].movedim(1, 0) if name == "lstm" else result.layers[layer][0]
    by_place = by_place.sum(dim=1 if name == "cnn" else 2)
    torch.testing.assert_close(rows.checks["layer"], by_place, rtol=0, atol=1e-12)
    torch.testing.assert_close(rows.checks["per place"].sum(dim=0), by_place, rtol=0, atol=1e-9)
    more = ("beyond first order",) if kind == "square" else ()
    count = len(rows.items) - 2 - len(more)
    assert rows.items == (*map(found.label, range(count)), "constant", *more, "error")
    alone = Lens(net).relevance(x, target=1, layers=found)
    assert not alone.layers and torch.equal(alone.bases[layer].values, rows.values)
    torch.testing.assert_close(alone.values, result.values, rtol=0, atol=0)


def test_relevance_of_a_feature_is_its_code_times_its_direction():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    x, sae = torch.randn(3, 4).double(), SAE(6, 9).double()
    rows = Lens(net).relevance(x, target=1, layers=Basis("1", sae), rules="epsilon").bases["1"].checks["per sample"]
    hidden, weight = net[:2](x), net[2].weight[1]
    codes = sae.encode(hidden)
    expected = codes * (sae.dec.weight.T @ weight)
    torch.testing.assert_close(rows[:9].T, expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(rows[9], (sae.dec.bias @ weight).expand(3).detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(rows[10], ((hidden - sae.decode(codes)) @ weight).detach(), rtol=0, atol=1e-12)


def test_a_convolution_and_its_batch_norm_divide_what_is_the_layers_own():
    net, x, *_ = case("cnn")
    for rules in ("epsilon", "epsilon_plus"):
        for layer in ("0", "1"):
            found = basis(net, x, layer, features=6)  # no error is left
            rows = Lens(net).relevance(x, target=1, layers=[layer, found], rules=rules).bases[layer]
            torch.testing.assert_close(rows.checks["per place"].sum(dim=0), rows.checks["layer"], rtol=0, atol=1e-9)
            assert float(rows.checks["per sample"][-1].abs().max()) < 1e-9


def test_features_at_each_place_several_bases_and_layers_in_one_call():
    net, x, layer, *_ = case("transformer")
    first, second = made("sae", net, x, layer), Basis.of_directions(layer, {"way": torch.ones(6)})
    by_unit = Lens(net).ablate(x, second, target=1, by="unit")
    assert by_unit.items[0] == "block way at 0" and by_unit.items[-1] == "block error at 4" and len(by_unit) == 10
    both = Lens(net).ablate(x, [first, second, "embed"], target=1)
    assert len(both) == 9 + 1 + 1 + 1 + 1
    assert {"block directions way", "block SAE feature 3", "embed", "block SAE error"} <= set(both.items)
    single = Lens(net).ablate(x, first, target=1)
    torch.testing.assert_close(both.values[-12:-2], single.values, rtol=0, atol=1e-12)
    group = Lens(net).ablate(x, first, target=1, together={"all": [f"block feature {k}" for k in range(9)]})
    by_hand_bias = feature_effects(net, x, first, target=1, by="ablation")
    assert group.items == ("all",) and bool(by_hand_bias.values.isfinite().all())
    relevance = Lens(net).relevance(x, target=1, layers=[first, second])
    assert set(relevance.bases) == {"block SAE", "block directions"}
    assert single.to_pandas().index[3] == "block feature 3"


def test_saliency_of_features_by_the_methods_of_layers():
    for name, kind in (("cnn", "square"), ("lstm", "sae"), ("transformer", "directions")):
        net, x, layer, _, axis = case(name)
        found, lens = made(kind, net, x, layer), Lens(net)
        by_gradient = lens.saliency(x, target=1, where=found, method="input_x_gradient")
        effects = feature_effects(net, x, found, target=1).checks["per sample"]
        values = by_gradient.values[f"{layer} features"].movedim(axis, 1)
        assert by_gradient.settings["where"] == f"{layer} features, {layer} error"
        torch.testing.assert_close(values.reshape(*values.shape[:2], -1).sum(dim=2).T, effects[: values.shape[1]])
        error = by_gradient.values[f"{layer} error"].flatten(1).sum(dim=1)
        torch.testing.assert_close(error, effects[-1])
        path = lens.saliency(x, target=1, where=found, method="integrated_gradients")
        whole = sum(one.flatten(1).sum(dim=1) for one in path.values.values())
        empty = by_hand(net, x, case_module(net, layer), axis, lambda rows, found=found: nothing(found, rows))
        torch.testing.assert_close(whole, path.score - empty, rtol=0, atol=1e-4)
        taken = lens.saliency(x, target=1, where=found, method="feature_ablation").values[f"{layer} error"]
        assert taken.shape == by_gradient.values[f"{layer} error"].shape
    earlier = lens.saliency(x, target=1, where=[found, "embed"], method="gradient")
    alone = lens.saliency(x, target=1, where="embed", method="gradient")
    torch.testing.assert_close(earlier.values["embed"], alone.values)
    flat = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2))
    named = Lens(flat).saliency(torch.ones(2, 3), where=Basis.of_directions("0", {"up": torch.ones(6)}), target=0)
    assert named.features["0 features"] == ("up",)


def case_module(net, layer):
    return net.get_submodule(layer.split("/")[0])


def nothing(found, rows):
    return found.decode_last(torch.zeros_like(found.encode_last(rows)), rows)


def test_steering_adds_to_a_code_or_sets_it():
    for name in ("cnn", "lstm", "transformer"):
        net, x, layer, module, axis = case(name)
        sae = SAE(6, 9).double()
        found = Basis(layer, sae)
        with pytest.raises(OptionError, match="number of features is unknown"):
            found.direction(0)
        made_run = Lens(net).run(x, edits={layer: found.steer(2, 3.0)})[:, 1].detach()
        with torch.no_grad():
            torch.testing.assert_close(found.direction(2), sae.dec.weight[:, 2])
        expected = by_hand(net, x, module, axis, lambda rows, sae=sae: rows + 3 * sae.dec.weight[:, 2])
        torch.testing.assert_close(made_run, expected, rtol=0, atol=1e-12)

        def fixed(rows, sae=sae):
            codes = sae.encode(rows)
            return rows + (2.0 - codes[..., 4:5]) * sae.dec.weight[:, 4]

        set_run = Lens(net).run(x, edits={layer: found.steer(4, 2.0, fix=True)})[:, 1].detach()
        torch.testing.assert_close(set_run, by_hand(net, x, module, axis, fixed), rtol=0, atol=1e-12)
        with pytest.raises(OptionError, match="there is no feature 9"):
            Lens(net).run(x, edits={layer: found.steer(9, 1.0)})


def test_directions_are_a_projection():
    first, second = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])
    found = Basis.of_directions("0", {"one": first, "two": second})
    units = torch.tensor([[3.0, 2.0, 5.0]])
    torch.testing.assert_close(found.codes(units), torch.tensor([[1.0, 2.0]]))
    torch.testing.assert_close(found.error(units), torch.tensor([[0.0, 0.0, 5.0]]))
    torch.testing.assert_close(found.direction("two"), second)
    with pytest.raises(OptionError, match="depend on each other"):
        Basis.of_directions("0", {"one": first, "two": 2 * first})
    with pytest.raises(OptionError, match="vectors of the layer's units"):
        Basis.of_directions("0", {"one": first, "two": torch.ones(2)})


def test_what_does_not_fit_is_refused_with_what_to_name():
    torch.manual_seed(0)
    twice, x = Twice().double(), torch.randn(4, 3).double()
    lens, sae = Lens(twice), SAE(3, 4).double()
    for call in (lens.ablate, lens.relevance):
        options = {"layers": Basis("inner", sae)}
        with pytest.raises(SelectionError, match="ran 2 times; name one call: 'inner#0' to 'inner#1'"):
            call(x, target=0, **options)
    second = lens.ablate(x, Basis("inner#1", sae), target=0)
    assert second.items[0] == "inner#1 feature 0"
    rows = lens.relevance(x, target=0, layers=Basis("inner#1", sae)).bases["inner#1"]
    torch.testing.assert_close(rows.checks["per sample"].sum(dim=0), rows.checks["layer"])
    with pytest.raises(OptionError, match="its features"):
        lens.ablate(x, Basis("inner#1", sae), by="position", target=0)
    with pytest.raises(InputError, match="encode of Basis"):
        lens.ablate(x, Basis("head", sae), target=0)
    with pytest.raises(InputError, match="encode of Basis"):
        lens.relevance(x, layers=Basis("head", sae), target=0)
    with pytest.raises(OptionError, match="two parts called 'error'"):
        lens.ablate(x, Basis("head", encode=lambda h: h, decode=lambda c: c, features=["error", "b"]), target=0)
    with pytest.raises(OptionError, match="two bases are called 'inner#1 SAE'"):
        lens.ablate(x, [Basis("inner#1", sae), Basis("inner#1", sae)], target=0)
    rnn = Recurrent().double()
    with pytest.raises(SelectionError, match=r"a basis is of one\. Name one: 'rnn/output', 'rnn/h_n'"):
        feature_effects(rnn, torch.randn(2, 5, 3).double(), Basis("rnn", SAE(6, 9).double()), target=0)
    with pytest.warns(UserWarning, match="decode of Basis.*is not linear"):
        lens.relevance(x, target=0, layers=Basis("inner#0", SAE(3, 4, square=True).double()))
