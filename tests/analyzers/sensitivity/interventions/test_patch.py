"""Patching: planted circuits, and one hook and one run at a time."""

import pytest
import torch
from torch import nn

from layerlens import Lens, capture, contrast, edits, errors, patch
from layerlens.results import LayerProfile, Matrix, Ranking
from layerlens.targets.target import as_target
from tests.analyzers.sensitivity.interventions.oracles import as_double, run
from tests.cases import CASES, normal


class Move(nn.Module):
    """Adds what stands at one position to another, through one channel."""

    def forward(self, x):
        moved = torch.zeros_like(x)
        moved[:, 4, 3] = x[:, 1, 2]
        return x + moved


class Circuit(nn.Module):
    """The token at position 1 is written to channel 2 there, moved to channel 3 of the last position, and read."""

    def __init__(self):
        super().__init__()
        self.embed, self.early, self.move, self.late = nn.Embedding(10, 6), nn.Identity(), Move(), nn.Identity()
        self.noise, self.read = nn.Linear(6, 6), nn.Linear(6, 2, bias=False)
        with torch.no_grad():
            self.embed.weight[:, 3] = 0
            self.read.weight.copy_(torch.tensor([[0, 0, 0, 1.0, 0, 0], [0, 0, 0, -1.0, 0, 0]]))

    def forward(self, ids):
        x = self.move(self.early(self.embed(ids)) * 1.0)
        self.noise(x)  # which nobody reads
        return self.read(self.late(x * 1.0)[:, -1])


def circuit():
    torch.manual_seed(0)
    return Circuit().double().requires_grad_(False)


X, OTHER = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[9, 6, 8, 4, 7]])
LAYERS = ["embed", "move", "noise", "late"]


@pytest.mark.parametrize("way", ["denoise", "noise"])
def test_a_planted_circuit_is_found_position_by_position(way):
    found = patch(circuit(), X, OTHER, LAYERS, by="layer_position", target=contrast(0, 1), direction=way)
    assert isinstance(found, Matrix) and found.rows == ("embed", "move", "noise", "late")
    expected = torch.zeros(4, 5, dtype=torch.float64)
    expected[0, 1] = expected[1, 4] = expected[3, 4] = 1
    torch.testing.assert_close(found.values, expected, rtol=1e-12, atol=1e-12)
    assert found.columns == tuple("01234") and found.error is None
    scores = as_target(contrast(0, 1))
    assert found.checks["scores"].tolist() == [float(scores(run(circuit(), ids)).squeeze()) for ids in (X, OTHER)]


def test_a_planted_circuit_is_found_channel_by_channel():
    found = patch(circuit(), X, OTHER, ["embed", "move"], by="channel", target=0)
    assert isinstance(found, Ranking)
    assert {item: round(value, 12) for item, value in found.ranked()[:3]} == {
        "embed channel 2": 1, "move channel 3": 1, found.ranked()[2][0]: 0,
    }  # fmt: skip
    single = patch(circuit(), X, OTHER, ["embed", "move"], by="unit", target=0)
    assert [item for item, value in single.ranked() if abs(value) > 1e-12] == ["embed unit (1, 2)", "move unit (4, 3)"]


def test_what_suffices_and_what_is_needed_are_two_things():
    class Either(nn.Module):
        """y = max(a, b): either suffices, neither is needed."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(1, 1), nn.Linear(1, 1)

        def forward(self, x):
            return torch.maximum(self.a(x), self.b(x))

    model = Either().double().requires_grad_(False)
    for linear in (model.a, model.b):
        linear.weight.fill_(1.0), linear.bias.fill_(0.0)
    x, other = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    assert patch(model, x, other, ["a", "b"], target=0).values.tolist() == [1, 1]
    assert patch(model, x, other, ["a", "b"], target=0, direction="noise").values.tolist() == [0, 0]


def other_input(x):
    if isinstance(x, dict):
        return {name: other_input(part) if "mask" not in name else part for name, part in x.items()}
    if not isinstance(x, torch.Tensor):
        return x
    if x.is_floating_point():
        return x + normal(*x.shape, seed=11).to(x)
    return x % 17 + 1


@pytest.mark.filterwarnings("ignore:.*hardly differ")
@pytest.mark.parametrize(
    "name", ["mlp", "cnn", "lstm", "encoder", "hf_bert", "hf_llama", "gan", "two_inputs", "nested"]
)
def test_every_layer_is_what_an_edited_run_makes_of_it(name):
    case = CASES[name]
    model, x = case.build().double(), as_double(case.example())
    other = other_input(x)
    target = as_target(case.target)
    lens, record = Lens(model), capture(model, other)
    start, goal = target(run(model, x)), target(run(model, other))
    found = patch(model, x, other, target=case.target)
    assert isinstance(found, LayerProfile)
    single = {layer: call for layer in record if len(calls := record.calls(layer)) == 1 for call in calls}
    compared = 0
    for row, layer in enumerate(found.layers):
        if layer not in single or not isinstance(single[layer].output, torch.Tensor):
            continue
        with torch.no_grad():
            changed = target(lens.run(x, edits={layer: edits.patch(record)})) - start
        torch.testing.assert_close(found.checks["per sample"][row], changed.detach(), rtol=1e-9, atol=1e-11)
        share = float(changed.mean() / (goal - start).mean())
        assert float(found.values[row]) == pytest.approx(share, rel=1e-8, abs=1e-10), layer
        spread = (changed - found.values[row] * (goal - start)).std().detach() / 2**0.5 / (goal - start).mean().abs()
        assert float(found.error[row]) == pytest.approx(float(spread), rel=1e-8, abs=1e-9)
        compared += 1
    assert compared > (name != "lstm")


def test_the_plain_change_and_the_null():
    case = CASES["cnn"]
    model, x = case.build(), case.example()
    other = other_input(x)
    shares = patch(model, x, other, "conv2", by="channel", target=2)
    plain = patch(model, x, other, "conv2", by="channel", target=2, recovery=False, null=True)
    gap = float(shares.checks["scores"][1] - shares.checks["scores"][0])
    torch.testing.assert_close(plain.values, shares.values * gap, rtol=1e-5, atol=1e-6)
    assert plain.units == "score" and plain.null.shape == (8,) and bool((plain.null * plain.values > 0).all())


def test_a_layer_that_ran_otherwise_is_told():
    case = CASES["early_exit"]
    model, x = case.build(), case.example()
    with pytest.warns(UserWarning, match="left out"):
        found = patch(model, x, 40 * x, target=0)
    assert "did not run there" in found.settings["left_out"].values()


def test_inputs_that_do_not_fit_are_refused():
    case = CASES["hf_bert"]
    model, x = case.build(), case.example()
    longer = {name: torch.cat([part, part[:, :1]], dim=1) for name, part in x.items()}
    with pytest.raises(errors.InputError, match=r"int64 \(2, 6\) and int64 \(2, 7\): 6 tokens and 7"):
        patch(model, x, longer, target=1)
    shorter = x | {"attention_mask": x["attention_mask"].clone()}
    shorter["attention_mask"][0, 5] = 0
    with pytest.raises(errors.InputError, match=r"same padding.*\[6, 4\] and \[5, 4\]"):
        patch(model, x, shorter, target=1)
    with pytest.raises(errors.InputError, match="must have the same parts"):
        patch(model, x, {"input_ids": x["input_ids"]}, target=1)
    with pytest.raises(errors.TargetError, match="there is no difference to recover"):
        patch(model, x, x, target=1)
    with pytest.raises(errors.OptionError, match="unknown direction 'up'"):
        patch(model, x, x, target=1, direction="up")
    mlp = CASES["mlp"]
    near = mlp.example() + 1e-5
    with pytest.warns(UserWarning, match="hardly differ"):
        patch(mlp.build(), mlp.example(), near, target=0)


class Letters:
    """A tokenizer of letters."""

    def __call__(self, texts, **options):
        ids = [[ord(letter) - 96 for letter in text] for text in ([texts] if isinstance(texts, str) else texts)]
        return {"input_ids": ids[0] if isinstance(texts, str) else torch.tensor(ids)}

    def decode(self, ids):
        return "".join(chr(96 + int(token)) for token in ids)

    def __len__(self):
        return 26


def test_texts_name_the_columns():
    lens = Lens(CASES["hf_gpt2"].build(), tokenizer=Letters())
    found = lens.patch("abc", "adc", "transformer.h.*", by="layer_position", target=contrast("e", "f"))
    assert found.columns == ("0 a", "1 b / d", "2 c") and found.rows == ("transformer.h.0", "transformer.h.1")
    assert float(found.values[:, 0].abs().max()) < 1e-5  # before the texts differ nothing does
    assert "'e' next - 'f' next" in found.method
    with pytest.raises(errors.InputError, match="3 tokens and 4"):
        lens.patch("abc", "abcd", target="e")
    assert "does" in found.explain() or "shows" in found.explain()


def test_a_screen_measures_the_parts_that_matter_to_first_order():
    every = patch(circuit(), X, OTHER, ["embed", "move"], by="unit", target=0, recovery=False, screen="first_order")
    torch.testing.assert_close(every.checks["first order"], every.values)  # the circuit is linear
    assert every.settings["not_measured"] == 0
    few = patch(circuit(), X, OTHER, ["embed", "move"], by="unit", target=0, recovery=False, count=2)
    assert set(few.items) == {"embed unit (1, 2)", "move unit (4, 3)"}
    assert few.settings["not_measured"] == len(every.items) - 2
    assert [every.values[every.items.index(item)] for item in few.items] == list(few.values)


def test_first_order_effects_are_gradient_times_difference():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 2)
    ).double()
    x = normal(2, 2, 8, 8).double()
    other = x.flip(0) * 1.5
    layers = ["0", "2"]
    found = patch(model, x, other, layers, by="channel", target=0, recovery=False, count=4)
    values = {}
    for name, given in (("clean", other), ("corrupted", x)):
        hidden = [model[0](given)]
        hidden.append(model[2](model[1](hidden[0])))
        values |= {(name, layer): value for layer, value in zip(layers, hidden, strict=True)}
        score = model[3:](hidden[1])[:, 0].mean()
    gradients = dict(zip(layers, torch.autograd.grad(score, hidden), strict=True))
    effects = {}
    for layer in layers:
        product = gradients[layer] * (values["clean", layer] - values["corrupted", layer])
        for place, effect in enumerate(product.sum(dim=(0, 2, 3)).tolist()):
            effects[f"{layer} channel {place}"] = effect
    best = sorted(effects, key=lambda name: -abs(effects[name]))[:4]
    assert set(found.items) == set(best)
    for item, effect in zip(found.items, found.checks["first order"].tolist(), strict=True):
        assert effect == pytest.approx(effects[item], rel=1e-9, abs=1e-12)
    assert -1 <= float(found.checks["rank correlation"]) <= 1


def test_a_table_of_the_parts_that_a_screen_measured_leaves_the_others_open():
    found = patch(circuit(), X, OTHER, LAYERS, by="layer_position", target=0, count=3)
    assert int(found.values.isfinite().sum()) == 3


@pytest.mark.parametrize("options", [{"count": 0}, {"screen": "second_order"}])
def test_options_of_a_screen(options):
    with pytest.raises(errors.OptionError):
        patch(circuit(), X, OTHER, ["embed"], target=0, **options)
