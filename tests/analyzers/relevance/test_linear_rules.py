"""The rules of linear operations against dense, contribution by contribution sums in float64."""

import functools

import pytest
import torch
from torch import nn

import layerlens
from layerlens import Rulebook, errors, relevance
from layerlens.analyzers.relevance.rules.linear import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from layerlens.analyzers.relevance.rules.rulebook import RULEBOOKS, Part
from tests.cases import normal
from tests.oracles import dense_map, dense_rule, gradient_times_input

RULES = {
    Epsilon(0.3): ("epsilon", 0.3),
    Gamma(0.4): ("gamma", 0.4),
    ZPlus(): ("alpha_beta", 1, 0),
    AlphaBeta(2, 1): ("alpha_beta", 2, 1),
    AlphaBeta(1.5, 0.5): ("alpha_beta", 1.5, 0.5),
    Flat(): ("flat",),
    WSquare(): ("w_square",),
    ZBox(-5.0, 6.0): ("z_box", -5.0, 6.0),
}

LAYERS = {
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "linear without bias": (lambda: nn.Linear(5, 4, bias=False), (5,)),
    "linear on tokens": (lambda: nn.Linear(5, 4), (3, 5)),
    "linear on tokens without bias": (lambda: nn.Linear(5, 4, bias=False), (3, 5)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, padding=1), (2, 6)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 5, 5)),
    "conv2d grouped, dilated": (lambda: nn.Conv2d(4, 6, 2, dilation=2, groups=2, bias=False), (4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 2, 2), (2, 3, 3, 3)),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(3, 2, 3, stride=2, output_padding=1), (3, 4)),
    "transposed conv2d grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 3, 3)),
    "linear, norm": (lambda: nn.Sequential(nn.Linear(5, 4), norm(nn.BatchNorm1d(4))), (5,)),
    "conv1d, norm": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3), norm(nn.BatchNorm1d(3))), (2, 6)),
    "conv2d, norm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm(nn.BatchNorm2d(4))), (3, 4, 4)),
    "conv2d without bias, norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), norm(nn.BatchNorm2d(4))),
        (3, 4, 4),
    ),
    "norm without weights": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), norm(nn.BatchNorm2d(4, affine=False))),
        (3, 4, 4),
    ),
    "transposed grouped, norm": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), norm(nn.BatchNorm2d(6))),
        (4, 3, 3),
    ),
}  # fmt: skip


def norm(module):
    """A batch norm as after training: statistics, signs and shifts of all kinds."""
    with torch.no_grad():
        module.running_mean.copy_(normal(module.num_features))
        module.running_var.copy_(normal(module.num_features).abs() + 0.2)
        if module.affine:
            module.weight.copy_(normal(module.num_features) - 0.3)
            module.bias.copy_(normal(module.num_features))
    return module


class Weighted(nn.Module):
    """The outputs of a layer, after an optional activation, weighted and summed: the score is one number."""

    def __init__(self, layer, shape, activation=None):
        super().__init__()
        self.layer, self.activation = layer, activation
        out = layer(torch.zeros(2, *shape, dtype=torch.float64))
        self.register_buffer("c", normal(*out.shape[1:]).double())

    def forward(self, x):
        y = self.layer(x)
        y = y if self.activation is None else self.activation(y)
        return (y * self.c).flatten(1).sum(1, keepdim=True)


@functools.cache
def layer_of(name):
    torch.manual_seed(7)
    return LAYERS[name][0]().double().eval()


@functools.cache
def dense(name):
    """The (weight, bias) of a layer as one affine map."""
    layer, x = layer_of(name), normal(*LAYERS[name][1]).double()
    return tuple(part.detach() for part in dense_map(lambda one: layer(one.unsqueeze(0)).squeeze(0), x))


def build(name, activation=None):
    shape = LAYERS[name][1]
    return Weighted(layer_of(name), shape, activation), normal(2, *shape).double()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_it_is_the_published_sum(rule, name):
    model, x = build(name)
    x = torch.cat([x, x.abs(), -x.abs()])
    result = relevance(model, x, target=0, rules=Rulebook("one", linear=[(Part.ANY, rule)]))
    weight, bias = dense(name)
    for row in range(len(x)):
        upper = (weight @ x[row].reshape(-1) + bias) * model.c.reshape(-1)
        expected = dense_rule(RULES[rule], weight, bias, x[row].reshape(-1), upper).reshape(x[row].shape)
        torch.testing.assert_close(result.values[row], expected, rtol=1e-8, atol=1e-10)
    assert float(result.ledger.relative.max()) < 1e-12
    assert any(str(rule) in used for used in result.rules_used.values())


LEFT_OUT = {
    Epsilon(0.3, bias=False): ("epsilon", 0.3),
    Epsilon(0.0, bias=False): ("epsilon", 0.0),
    Gamma(0.4, bias=False): ("gamma", 0.4),
    ZPlus(bias=False): ("alpha_beta", 1, 0),
    AlphaBeta(2, 1, bias=False): ("alpha_beta", 2, 1),
    Flat(bias=False): ("flat",),
    WSquare(bias=False): ("w_square",),
    ZBox(-5.0, 6.0, bias=False): ("z_box", -5.0, 6.0),
}


@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.ReLU(inplace=True), nn.GELU()], ids=str)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rule", LEFT_OUT, ids=str)
def test_a_bias_that_is_left_out_gives_its_share_to_the_inputs(rule, name, activation):
    model, x = build(name, activation)
    result = relevance(model, x, target=0, rules=Rulebook("one", linear=[(Part.ANY, rule)]))
    weight, bias = dense(name)
    for row in range(2):
        y = (weight @ x[row].reshape(-1) + bias).reshape(model.c.shape)
        upper = ((y if activation is None else type(activation)()(y)) * model.c).reshape(-1)
        fed = weight.any(dim=1)  # outputs of a transposed convolution may have no input, which absorbs what they have
        expected = dense_rule(LEFT_OUT[rule], weight[fed], torch.zeros_like(bias[fed]), x[row].reshape(-1), upper[fed])
        torch.testing.assert_close(result.values[row].reshape(-1), expected, rtol=1e-8, atol=1e-10)
    assert float(result.ledger.relative.max()) < 1e-12
    assert float(result.ledger.additive.abs().max()) < 1e-12  # no bias is booked


@pytest.mark.parametrize("name", ["linear", "conv2d", "conv2d, norm", "transposed conv2d grouped"])
@pytest.mark.parametrize("rule", [Flat(bias=True), WSquare(bias=True), ZBox(-5.0, 6.0, bias=True)], ids=str)
def test_a_bias_takes_its_share_in_the_first_layer_if_it_shall(rule, name):
    model, x = build(name)
    result = relevance(model, x, target=0, rules=Rulebook("one", linear=[(Part.ANY, rule)]))
    weight, bias = dense(name)
    one = x[0].reshape(-1)
    upper = (weight @ one + bias) * model.c.reshape(-1)
    expected, taken = torch.zeros_like(one), one.new_zeros(())
    for w, b, r in zip(weight, bias, upper, strict=True):
        parts, own = {
            Flat: lambda w=w, b=b: ((w != 0).double(), 1.0),
            WSquare: lambda w=w, b=b: (w**2, b**2),
            ZBox: lambda w=w, b=b: (w * one + 5 * w.clamp(min=0) - 6 * w.clamp(max=0), 0.0),
        }[type(rule)]()
        expected += parts / (parts.sum() + own) * r
        taken += own / (parts.sum() + own) * r
    torch.testing.assert_close(result.values[0].reshape(-1), expected, rtol=1e-8, atol=1e-10)
    assert float(result.ledger.additive[0]) == pytest.approx(float(taken.detach()), abs=1e-10)
    assert float(result.ledger.relative.max()) < 1e-12


def test_two_layers_without_biases_by_hand():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
        net[0].bias.copy_(torch.tensor([4.0, 1.0]))
        net[2].weight.copy_(torch.tensor([[2.0, 1.0]]))
        net[2].bias.copy_(torch.tensor([5.0]))
    x = torch.tensor([[1.0, 1.0]]).double()  # hidden (3 + 4, 2 + 1) = (7, 3), score 14 + 3 + 5 = 22
    found = relevance(net, x, target=0, rules=Rulebook("all", linear=[(Part.ANY, Epsilon(0.0, bias=False))]))
    hidden = torch.tensor([14.0, 3.0]).double() / 17 * 22
    expected = hidden[0] * torch.tensor([1.0, 2.0]) / 3 + hidden[1] * torch.tensor([3.0, -1.0]) / 2
    torch.testing.assert_close(found.values[0], expected.double())
    assert float(found.values.sum()) == pytest.approx(22)


def test_where_all_contributions_cancel_the_relevance_is_absorbed():
    net = nn.Linear(2, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, -1.0]]))
        net.bias.fill_(3.0)
    for rule in (Epsilon(0.0, bias=False), Epsilon(0.1, bias=False), Gamma(0.0, bias=False)):
        found = relevance(net, torch.ones(1, 2), target=0, rules=Rulebook("one", linear=[(Part.ANY, rule)]))
        assert found.values.tolist() == [[0.0, 0.0]] and float(found.ledger.absorbed) == 3.0


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.SiLU(), nn.Tanh()], ids=str)
@pytest.mark.parametrize("name", ["linear on tokens", "conv2d", "conv2d, norm"])
@pytest.mark.parametrize("rule", [Gamma(0.4), AlphaBeta(2, 1), Epsilon(0.2)], ids=str)
def test_it_is_the_same_before_an_activation(rule, name, activation):
    """Where the next operation has saved the output, it is read there."""
    model, x = build(name, activation)
    result = relevance(model, x, target=0, rules=Rulebook("one", linear=[(Part.ANY, rule)]))
    weight, bias = dense(name)
    y = (weight @ x[0].reshape(-1) + bias).reshape(model.c.shape)
    upper = (type(activation)()(y) * model.c).reshape(-1)  # an elementwise function with f(0) = 0 passes all of it
    expected = dense_rule(RULES.get(rule, ("epsilon", 0.2)), weight, bias, x[0].reshape(-1), upper)
    torch.testing.assert_close(result.values[0].reshape(-1), expected, rtol=1e-8, atol=1e-10)
    assert float(result.ledger.relative.max()) < 1e-12


def test_relative_epsilon_is_in_units_of_the_spread():
    model, x = build("linear")
    z = model.layer(x)
    expected = [
        relevance(model, x[i : i + 1], target=0, rules=Rulebook("one", linear=[(Part.ANY, Epsilon(e))])).values[0]
        for i, e in enumerate((0.5 * z.std(dim=1, unbiased=False)).tolist())
    ]
    found = relevance(model, x, target=0, rules=Rulebook("one", linear=[(Part.ANY, Epsilon(0.5, relative=True))]))
    torch.testing.assert_close(found.values, torch.stack(expected), rtol=1e-9, atol=1e-12)


def test_epsilon_to_0_is_the_gradient_times_the_input_with_biases_and_norms():
    model, x = build("conv2d, norm", nn.ReLU())
    leaf = x.clone().requires_grad_()
    exact = gradient_times_input(model(leaf), leaf)
    for rule in (Epsilon(0.0), Gamma(0.0)):
        found = relevance(model, x, target=0, rules=Rulebook("zero", linear=[(Part.ANY, rule)])).values
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-9)


def test_a_gamma_without_end_is_z_plus():
    model, x = build("conv2d, norm", nn.ReLU())
    large, plus = (
        relevance(model, x, target=0, rules=Rulebook("one", linear=[(Part.ANY, rule)])).values
        for rule in (Gamma(1e9), ZPlus())
    )
    torch.testing.assert_close(large, plus, rtol=1e-5, atol=1e-8)


# -- the case rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [name for name in RULEBOOKS if name not in ("epsilon", "attn", "cp", "gate")])
def test_the_ledger_accounts_for_the_whole_score(case, rules):
    try:
        result = relevance(case.build(), case.example(), target=case.target, rules=rules)
    except errors.RelevanceError as error:  # a norm lies between the first linear layer and the input
        assert "a first-layer rule" in str(error) and case.kind not in ("convolution", "dense")
        return
    assert result.ledger.by_sample
    assert float(result.ledger.relative.max()) < 2e-5


# -- where -----------------------------------------------------------------------------------------------------------


def net():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), norm(nn.BatchNorm2d(4)), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    ).eval()  # fmt: skip


def same(one, other):
    x = normal(2, 2, 4, 4)
    first, second = (
        relevance(net(), x, target=1, rules=Rulebook("b", linear=linear)).values for linear in (one, other)
    )
    return torch.equal(first, second)


def test_parts_and_layers_name_the_same_operations():
    gamma = Gamma(0.5)
    assert same([(Part.CONVOLUTION, gamma)], [(nn.Conv2d, gamma)])
    assert same([(Part.CONVOLUTION, gamma)], [(["0", "1"], gamma)])  # a container means what is in it
    assert same([(Part.CONVOLUTION, gamma)], [("?.0", gamma)])
    assert same([(Part.FIRST, ZPlus())], [("0.0", ZPlus())])
    assert same([(Part.LAST, ZPlus())], [("5", ZPlus())])
    assert same([(Part.DENSE, gamma)], [(lambda path, module: isinstance(module, nn.Linear), gamma)])
    assert same([(Part.FIRST, Flat()), (Part.ANY, gamma)], [("0.0", Flat()), (Part.ANY, gamma)])  # the first counts
    assert not same([(Part.CONVOLUTION, gamma)], [(Part.ANY, gamma)])
    assert same([], [(Part.ANY, Epsilon(0))])


def test_a_selection_that_matches_nothing_is_refused():
    with pytest.raises(errors.LayerNotFound, match="no layer 'conv1'"):
        relevance(net(), normal(1, 2, 4, 4), target=0, rules=Rulebook("b", linear=[("conv1", ZPlus())]))


def test_relevance_at_layers_is_that_of_the_folded_output():
    """Convolution and norm are one operation to the rule: relevance at either is that of the norm's output."""
    x = normal(2, 2, 4, 4)
    book = Rulebook("b", linear=[(Part.CONVOLUTION, ZPlus())])
    result = relevance(net(), x, target=1, rules=book, layers=["0.0", "0.1", "0.2"])
    before, after, relu = (result.layers[name][0] for name in ("0.0", "0.1", "0.2"))
    torch.testing.assert_close(before, after)
    torch.testing.assert_close(after, relu)


def test_first_layer_rules_reach_inputs_that_are_0_through_moves_and_scalings():
    class Prepared(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(2, 3, 3)
            self.norm = norm(nn.BatchNorm2d(2))
            self.register_buffer("mean", normal(2, 1, 1))

        def forward(self, x):
            x = (x - self.mean) / 0.3
            x = self.norm(nn.functional.pad(x.permute(0, 1, 3, 2), (1, 1, 1, 1)))
            return self.conv(x).relu().flatten(1).sum(1, keepdim=True)

    x = normal(2, 2, 4, 4)
    x[:, 0, 1, 2] = 0
    for rule in (Flat(), WSquare(), ZBox()):
        book = Rulebook("b", linear=[(Part.FIRST, rule)])
        result = relevance(Prepared().double().eval(), x.double(), target=0, rules=book)
        assert float(result.ledger.relative.max()) < 1e-12
        assert float(result.values[:, 0, 1, 2].abs().min()) > 0
    for activation in (nn.Sigmoid(), nn.LayerNorm(4)):
        with pytest.raises(errors.RelevanceError, match="lies between it and the input"):
            relevance(nn.Sequential(activation, net()).eval(), normal(1, 2, 4, 4), target=0, rules=book)


# -- the model is borrowed, odd models -------------------------------------------------------------------------------


def test_frozen_weights_are_lent_a_flag():
    model, x = net().requires_grad_(False), normal(2, 2, 4, 4)
    free = net()
    book = RULEBOOKS["epsilon_plus"]
    torch.testing.assert_close(
        relevance(model, x, target=1, rules=book).values, relevance(free, x, target=1, rules=book).values
    )
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_weights_that_autograd_does_not_know():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("w", normal(3, 4))

        def forward(self, x):
            return nn.functional.linear(x, self.w)

    with pytest.raises(errors.RelevanceError, match="made outside of autograd"):
        relevance(Plain(), normal(2, 4), target=0, rules=Rulebook("b", linear=[(Part.ANY, ZPlus())]))


def test_a_checkpointed_block_gives_the_same():
    from torch.utils.checkpoint import checkpoint

    class Saved(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            for block in self.net[:2]:
                x = checkpoint(block, x, use_reentrant=False)
            return self.net[2:](x)

    x = normal(2, 2, 4, 4)
    for name in ("epsilon_plus", "epsilon_alpha2_beta1_flat", "epsilon_gamma_box"):
        plain, saved = (relevance(model, x, target=1, rules=name) for model in (net(), Saved().eval()))
        torch.testing.assert_close(saved.values, plain.values)


@pytest.mark.parametrize("make, match", [
    (lambda: Epsilon(-1.0), "epsilon must be at least 0"),
    (lambda: Gamma(-0.1), "gamma must be"),
    (lambda: AlphaBeta(2, 0), "beta must be alpha - 1"),
    (lambda: AlphaBeta(0.5, -0.5), "alpha must be at least 1"),
    (lambda: ZBox(float("nan"), 1.0), "low must be finite"),
    (lambda: Rulebook("b", linear=[ZPlus()]), "pairs"),  # type: ignore[list-item]
    (lambda: Rulebook("b", linear=[(Part.ANY, "z+")]), "pairs"),  # type: ignore[list-item]
])  # fmt: skip
def test_bad_parameters_are_refused(make, match):
    with pytest.raises(errors.OptionError, match=match):
        make()


def test_a_box_that_the_input_leaves_is_refused():
    book = Rulebook("b", linear=[(Part.FIRST, ZBox(0.0, 1.0))])
    with pytest.raises(errors.OptionError, match="leaves the box"):
        relevance(net(), normal(1, 2, 4, 4), target=0, rules=book)
    book = Rulebook("b", linear=[(Part.FIRST, ZBox((-9.0, -9.0, -9.0), 9.0))])
    with pytest.raises(errors.OptionError, match="3 bounds, but the input has 2 channels"):
        relevance(net(), normal(1, 2, 4, 4), target=0, rules=book)


def test_a_rulebook_says_what_it_does_and_a_result_what_was_done():
    book = Rulebook("mine", linear=[("0", ZPlus()), (nn.Linear, Gamma(0.1))])
    assert str(book).splitlines() == [
        "mine: attention cp, products gate", "  0: ZPlus()", "  Linear: Gamma(gamma=0.1)", "  else: epsilon -> 0"
    ]  # fmt: skip
    result = relevance(net(), normal(1, 2, 4, 4), target=0, rules=book)
    assert result.rules_used["Convolution"] == "ZPlus() with batch norm; gradient (epsilon -> 0)"
    assert result.settings["rules"]["linear"] == ["0: ZPlus()", "Linear: Gamma(gamma=0.1)"]
    assert layerlens.Rulebook is Rulebook


# -- the default -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, book, why", [
    ("cnn", "epsilon_plus", "convolutions and no attention"),
    ("gan", "epsilon_plus", "convolutions"),
    ("video", "epsilon_plus", "convolutions"),
    ("hf_vit", "cp", "attention"),
    ("hf_bert", "cp", "attention"),
    ("encoder", "cp", "attention"),
    ("lstm", "gate", "gates"),
    ("gru", "gate", "gates"),
    ("mlp", "epsilon", "neither"),
])  # fmt: skip
def test_the_default_looks_at_the_graph_and_says_what_it_took(name, book, why):
    from tests.cases import CASES

    case = CASES[name]
    chosen = relevance(case.build(), case.example(), target=case.target)
    assert chosen.settings["rules"]["name"] == book and why in chosen.settings["rules"]["chosen"]
    assert chosen.method == f"relevance, {book}"
    asked = relevance(case.build(), case.example(), target=case.target, rules=book)
    torch.testing.assert_close(asked.tensor, chosen.tensor)  # weights that no rule reads get other kernels of autograd
    assert "chosen" not in asked.settings["rules"]


def test_excitation_backprop_gives_probabilities():
    """Zhang et al. 2016, eq. 3: P_i = sum_j x_i w_ij^+ / (sum of those) P_j, no bias; all of it reaches the input."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x = normal(1, 6).double().abs()
    result = relevance(model, x, target=1, rules="excitation")
    hidden = model[1](model[0](x))[0].detach()
    w1, w2 = (model[place].weight.detach().clamp(min=0) for place in (0, 2))
    upper = hidden * w2[1] / (hidden * w2[1]).sum()
    lower = sum(x[0] * w1[j] / (x[0] * w1[j]).sum() * upper[j] for j in range(8))
    torch.testing.assert_close(result.values[0] / result.score[0], lower)
    assert float(result.values.sum() / result.score[0]) == pytest.approx(1)
