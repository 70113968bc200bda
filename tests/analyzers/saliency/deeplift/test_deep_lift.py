"""DeepLIFT: by hand, against captum where captum is right, and complete on any model."""

import copy
import warnings

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import layerlens
from layerlens.analyzers.saliency import deep_lift
from layerlens.errors import InputError, OptionError, TargetError
from tests.cases import CASES, double, normal
from tests.families import family
from tests.snapshot import Snapshot


def completes(result, within=1e-9):
    """Whether the values of every sample sum to the change of its score."""
    return bool((result.checks["completeness gap"] <= within).all())


def theirs(model, x, baseline, target):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum tells of its hooks
        return captum.attr.DeepLift(model).attribute(x, baseline, target=target).detach()


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_a_net_worked_out_by_hand():
    """h = relu(W x): h1 goes from 1 to 3 as its input goes from 1 to 3, h2 from 0 to 1 as it goes from -1 to 1."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 1.0], [2.0, 0.0]]))
        net[0].bias.copy_(torch.tensor([1.0, -1.0]))
        net[2].weight.copy_(torch.tensor([[3.0, 4.0]]))
        net[2].bias.fill_(0.5)
    result = deep_lift(net, torch.ones(1, 2).double())
    # m(h1) = 2 / 2 = 1, m(h2) = 1 / 2: x1 gets 3 * 1 * 1 + 4 * 1/2 * 2, x2 gets 3 * 1 * 1
    assert result.values.tolist() == [[7.0, 3.0]]
    assert float(result.score) == 13.5  # and 3.5 at the baseline
    assert float(result.checks["completeness gap"]) == 0
    assert result.settings["baseline"] == "zero"


def test_a_product_is_shared_by_the_midpoint():
    class Product(nn.Module):
        def forward(self, x):
            return (x[:, 0] * x[:, 1])[:, None]

    result = deep_lift(Product(), torch.tensor([[3.0, 5.0]]), baseline=torch.tensor([[1.0, 2.0]]))
    assert result.values.tolist() == [[2 * 3.5, 3 * 2.0]]


def test_max_pooling_gives_a_rise_to_the_new_maximum_and_a_fall_to_the_old():
    pool = nn.Sequential(nn.MaxPool1d(2), nn.Flatten(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        pool[2].weight.fill_(1.0)
    x, start = torch.tensor([[[1.0, 5.0, 1.0, 2.0]]]).double(), torch.tensor([[[3.0, 0.0, 4.0, 1.0]]]).double()
    assert deep_lift(pool, x, baseline=start).values.tolist() == [[[0.0, 2.0, -2.0, 0.0]]]


# -- captum ----------------------------------------------------------------------------------------------------------


def plain():
    return nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 7), nn.Sigmoid(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 5),
        nn.LeakyReLU(0.1), nn.Linear(5, 4), nn.ELU(), nn.Linear(4, 4), nn.Softplus(), nn.Linear(4, 3),
    )  # fmt: skip


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.MaxPool2d(2), nn.Conv2d(6, 4, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip


NETS = {"plain": (plain, (3, 5)), "convolutional": (convolutional, (3, 2, 8, 8))}


@pytest.mark.parametrize("name", NETS)
def test_on_a_net_of_distinct_modules_it_is_captums(name):
    torch.manual_seed(0)
    make, shape = NETS[name]
    model, x, start = make().double().eval(), normal(*shape).double(), 0.5 * normal(*shape, seed=3).double()
    result = deep_lift(model, x, target=1, baseline=start)
    torch.testing.assert_close(result.values, theirs(model, x, start, 1), rtol=1e-9, atol=1e-9)
    assert completes(result)


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.relu = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3), nn.ReLU()

    def forward(self, x):
        return self.c(self.relu(self.b(self.relu(self.a(x)))))


class Functional(Reused):
    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


class Six(Reused):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.ReLU6(), nn.ReLU6()

    def forward(self, x):
        return self.c(self.second(self.b(self.first(8 * self.a(x)))))


class Residual(Reused):
    def forward(self, x):
        h = F.relu(self.a(x))
        return self.c(h + torch.tanh(self.b(h)))


@pytest.mark.parametrize("kind", [Reused, Functional, Six, Residual])
def test_what_captum_gets_wrong(kind):
    """Hooks on modules mix up the calls of a reused one, and do not see what is no module of a kind they know."""
    torch.manual_seed(0)
    model, x = kind().double(), normal(3, 5).double()
    result = deep_lift(model, x, target=1)
    assert completes(result)
    with torch.no_grad():
        change = (model(x) - model(torch.zeros_like(x)))[:, 1]
    torch.testing.assert_close(result.values.sum(dim=1), change, rtol=1e-9, atol=1e-9)
    try:
        found = theirs(model, x, torch.zeros_like(x), 1)
    except (RuntimeError, AssertionError):  # it refuses a reused module
        return
    assert not torch.allclose(found.sum(dim=1), change, rtol=1e-3)


IN_A_ROW = {
    "ReLU, then pooling": [nn.ReLU(), nn.MaxPool2d(2)],
    "tanh, then ReLU": [nn.Tanh(), nn.ReLU()],
    "windows that overlap": [nn.MaxPool2d(3, 1)],
}


@pytest.mark.parametrize("name", IN_A_ROW)
def test_what_captum_loses(name):
    """Of two modules in a row the first one's hook gets the gradient before the second one's hook replaces it, and of
    what two overlapping windows send to one place one part is kept.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), *IN_A_ROW[name], nn.Flatten(), nn.LazyLinear(3)).double()
    x, start = normal(3, 2, 8, 8).double(), 0.5 * normal(3, 2, 8, 8, seed=3).double()
    with torch.no_grad():
        change = (model(x) - model(start))[:, 1]
    assert completes(deep_lift(model, x, target=1, baseline=start))
    assert (theirs(model, x, start, 1).flatten(1).sum(dim=1) - change).abs().max() > 0.01


def test_captums_softmax_is_another_rule():
    """Captum subtracts the mean of the multipliers from a softmax by itself; both are complete, ours is composed."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Softmax(dim=1)).double(), normal(2, 4).double()
    result = deep_lift(model, x, target=1)
    assert completes(result)
    assert not torch.allclose(result.values, theirs(model, x, torch.zeros_like(x), 1))


# -- completeness ----------------------------------------------------------------------------------------------------

OTHER_ROUTE = {"early_exit"}
"""Rows that cannot be compared: the reference, a sample of zeros, is sure after another number of blocks."""

SINGLE = {"hf_llama", "hf_llava"}
"""Rows that compute their norms in float32 whatever the model's numbers are."""


def test_it_is_complete_on_every_row(case):
    model, x = case.build().double(), double(case.example())
    if case.name in OTHER_ROUTE:
        with pytest.raises(InputError, match="another route for the baseline"):
            deep_lift(model, x, target=case.target)
        return
    assert completes(deep_lift(model, x, target=case.target), 1e-5 if case.name in SINGLE else 1e-9)


@pytest.mark.parametrize("name", ["resnet", "vit", "swin", "convnext", "bert", "deberta", "gpt2", "llama", "bart"])
def test_it_is_complete_on_families_that_it_was_never_told_of(name):
    model, x, target = family(name)
    result = deep_lift(copy.deepcopy(model).double(), double(x), target=target)
    assert completes(result, 1e-5 if name == "llama" else 1e-9)


def test_it_is_complete_in_single_precision(case):
    if case.name not in OTHER_ROUTE:
        assert completes(deep_lift(case.build(), case.example(), target=case.target), 1e-4)


W = normal(2, 4, 6, 6, seed=5).double()

OPERATIONS = {
    "square": lambda x: x**2,
    "power": lambda x: x**3 * W,
    "number to the power": lambda x: 2**x * W,
    "product": lambda x: x[:, :2] * x[:, 2:],
    "broadcast product": lambda x: x * x.mean(dim=(2, 3), keepdim=True),
    "matmul": lambda x: x @ x.transpose(-1, -2),
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x[:, :2].tanh()),
    "quotient": lambda x: x[:, :1] / (x[:, 1:].exp() + 1),
    "quotient that changes sign": lambda x: x[:, :1] / x[:, 1:],
    "number over x": lambda x: 1 / (x.exp() + 1),
    "reciprocal": lambda x: x * torch.reciprocal(1 + x**2),
    "lerp": lambda x: torch.lerp(x[:, :1], x[:, 1:2], x[:, 2:3]),
    "softmax": lambda x: x.softmax(1) * W,
    "steep softmax": lambda x: (500 * x).softmax(1) * W,
    "masked softmax": lambda x: x.masked_fill(W.mean(1, keepdim=True) < W, -torch.inf).softmax(1) * W,
    "log softmax": lambda x: x.log_softmax(-1) * W,
    "log sum exp": lambda x: x.logsumexp((1, 2), keepdim=True) * W,
    "layer norm": lambda x: F.layer_norm(x, [6, 6], W[0, 0], W[0, 1]) * W,
    "group norm": lambda x: F.group_norm(x, 2, W[0, :, 0, 0], W[0, :, 0, 1]) * W,
    "instance norm": lambda x: F.instance_norm(x) * W,
    "rms norm": lambda x: F.rms_norm(x, [6], W[0, 0, 0]) * W,
    "standard deviation": lambda x: x.std(1),
    "mean and deviation": lambda x: sum(torch.std_mean(x, 1)),
    "variance": lambda x: x.var(1),
    "norm": lambda x: x.norm(dim=1),
    "1-norm": lambda x: x.norm(p=1, dim=1) * W[:, 0],
    "3-norm": lambda x: x.norm(p=3, dim=(1, 2)),
    "normalize": lambda x: F.normalize(x, dim=1) * W,
    "cosine": lambda x: F.cosine_similarity(x[:, :2], x[:, 2:], dim=-1),
    "overlapping max pooling": lambda x: F.max_pool2d(x, 3, 1) * W[:, :, :4, :4],
    "adaptive max pooling": lambda x: F.adaptive_max_pool2d(x, 4) * W[:, :, :4, :4],
    "max": lambda x: x.max(1).values * W[:, 0],
    "amax": lambda x: x.amax((1, 2)) * W[:, 0, 0],
    "min": lambda x: x.min(1).values * W[:, 0],
    "larger": lambda x: torch.maximum(x[:, :2], x[:, 2:]) * W[:, :2],
    "larger than a constant": lambda x: torch.maximum(x, 0.1 * W) * W,
    "running maximum": lambda x: x.cummax(1).values * W,
    "largest k": lambda x: x.topk(2, 1).values * W[:, :2],
    "sort": lambda x: x.sort(-1).values * W,
    "median": lambda x: x.median(1).values * W[:, 0],
    "where": lambda x: torch.where(x > 0, x, 0.1 * x) * W,
    "where of two signals": lambda x: torch.where(x[:, :2] > 0, x[:, 2:], x[:, :2]) * W[:, :2],
    "mask made by comparing": lambda x: x * (x > 0) * W,
    "masked fill": lambda x: x.masked_fill(x < 0.3, 0.0) * W,
    "gather": lambda x: x.gather(1, x.argmax(1, keepdim=True)) * W[:, :1],
    "index": lambda x: x[torch.arange(2), x[:, :, 0, 0].argmax(1)],
    "gated linear unit": lambda x: F.glu(x, 1) * W[:, :2],
    "attention": lambda x: F.scaled_dot_product_attention(x, 2 * x, x.flip(1)) * W,
    "causal attention": lambda x: F.scaled_dot_product_attention(x, 2 * x, x.flip(1), is_causal=True) * W,
    "rounding": lambda x: x.round() * W,
    "clamp": lambda x: x.clamp(-0.3, 0.5) * W,
    "prelu": lambda x: F.prelu(x, W[0, :, 0, 0]) * W,
    "in place": lambda x: F.gelu(F.hardtanh_(x * 3, 0.2, 1)) + F.relu_(x * 2) * W,
    "overwritten result": lambda x: F.gelu(x).mul_(3.0) * W,
    "overwritten input": lambda x: (lambda z: (z.tanh(), z.add_(1))[0])(x * 1) * W,
    "written into a view": lambda x: (lambda z: (z[:, :2].relu_(), z)[1])(x * 1) * W,
}  # fmt: skip


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x).flatten(1).sum(dim=1, keepdim=True)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_explains_the_whole_difference(name):
    x, start = normal(2, 4, 6, 6).double(), normal(2, 4, 6, 6, seed=8).double()
    assert completes(deep_lift(Function(OPERATIONS[name]), x, target=0, baseline=start), 1e-12)


def test_noise_that_a_model_draws_is_the_same_in_both_runs():
    case = CASES["vae"]
    torch.manual_seed(0)
    first = deep_lift(case.build(), case.example(), target=case.target)
    assert completes(first, 1e-5)


def test_a_reference_of_the_users_choice():
    case = CASES["hf_bert"]
    for baseline in ("zero", 3):  # the zero embedding, and a token
        assert completes(deep_lift(case.build().double(), case.example(), target=1, baseline=baseline))
    with pytest.raises(OptionError, match="does not broadcast"):
        deep_lift(CASES["mlp"].build(), CASES["mlp"].example(), baseline=torch.ones(5))


# -- what it says ----------------------------------------------------------------------------------------------------


def test_an_operation_without_a_rule_is_named_once():
    model = Function(lambda x: x.prod(dim=1, keepdim=True) + x.prod(dim=1, keepdim=True))
    with pytest.warns(UserWarning) as told:
        deep_lift(model, 1 + normal(2, 3).double(), target=0, baseline=normal(2, 3, seed=1).double())
    texts = [str(one.message) for one in told]
    assert sum("no rule is known for Prod: the gradient is used" in text for text in texts) == 1
    assert sum("miss S(x) - S(baseline) by more than 0.001 of it" in text for text in texts) == 1


def test_what_the_model_detaches_shows_in_the_gap():
    model = Function(lambda x: x + x.detach() ** 2)
    with pytest.warns(UserWarning, match="the model detaches a signal"):
        deep_lift(model, normal(2, 3).double(), target=0)


def test_a_choice_that_explains_nothing_is_named():
    model = Function(lambda x: torch.where(x > 0.5, 0.0 * x + 2, 0.0 * x) + x)
    with pytest.warns(UserWarning, match="Where chose otherwise for the baseline"):
        deep_lift(model, torch.ones(2, 3), target=0)


def test_a_score_without_a_gradient_is_refused():
    with pytest.raises(TargetError, match="no gradient flows"):
        deep_lift(Function(lambda x: x.detach() * 2), normal(2, 3), target=0)


# -- a guest ---------------------------------------------------------------------------------------------------------


def test_a_batch_is_its_samples():
    for name in ("cnn", "hf_vit", "lstm"):
        case = CASES[name]
        model, x = case.build().double(), double(case.example())
        rows = next(iter(layerlens.inputs.inputs.as_inputs(x).tensors().values()))
        whole = deep_lift(model, x, target=1).tensor
        for row in range(2):
            one = {"pixel_values": rows[row : row + 1]} if name == "hf_vit" else rows[row : row + 1]
            torch.testing.assert_close(whole[row : row + 1], deep_lift(model, one, target=1).tensor)


def test_a_tensor_of_the_model_that_is_no_parameter_keeps_its_gradient():
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.__dict__["scale"] = torch.ones(3, requires_grad=True)

        def forward(self, x):
            return torch.relu(x * self.scale)

    model = Held()
    model.scale.grad = torch.full((3,), 0.5)
    before = model.scale.grad
    deep_lift(model, 1 + normal(2, 3).abs(), target=0)
    assert model.scale.grad is before
    assert before.tolist() == [0.5, 0.5, 0.5]


def test_the_model_and_the_input_are_left_alone_also_after_an_error():
    case = CASES["cnn"]
    for spoil in (None, lambda module, args, output: 1 / 0):
        model, x = case.build().train(), case.example().requires_grad_()
        if spoil is not None:
            model.fc.register_forward_hook(spoil)
        before = Snapshot(model, x)
        try:
            with torch.no_grad():
                deep_lift(model, x, target=1)
        except ZeroDivisionError:
            assert spoil is not None
        before.check()


def test_it_is_a_method_by_name():
    case = CASES["mlp"]
    result = layerlens.saliency(case.build(), case.example(), target=1, method="deep_lift")
    torch.testing.assert_close(result.values, deep_lift(case.build(), case.example(), target=1).values)
    assert result.method == "deep_lift"


# -- reveal-cancel ---------------------------------------------------------------------------------------------------


class Smaller(nn.Module):
    """o = min(i1, i2) = i1 - relu(i1 - i2), with a linear layer or without."""

    def __init__(self, linear):
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=False) if linear else None
        if linear:
            with torch.no_grad():
                self.layer.weight.copy_(torch.tensor([[1.0, -1.0]]))

    def forward(self, x):
        apart = x[:, :1] - x[:, 1:] if self.layer is None else self.layer(x)
        return x[:, :1] - F.relu(apart)


@pytest.mark.parametrize("linear", [True, False])
def test_the_smaller_of_two_is_due_to_both(linear):
    """The example of Shrikumar et al. 2017 (fig. 2, sec. 3.5.3): rescale gives all to the smaller input."""
    x = torch.tensor([[3.0, 1.0], [2.0, 5.0]])
    half = deep_lift(Smaller(linear), x, target=0, rule="reveal_cancel")
    torch.testing.assert_close(half.values, torch.tensor([[0.5, 0.5], [1.0, 1.0]]))
    assert half.settings["rule"] == "reveal_cancel"
    whole = deep_lift(Smaller(linear), x, target=0)
    torch.testing.assert_close(whole.values, torch.tensor([[0.0, 1.0], [2.0, 0.0]]))


def revealed(layers, x, start, index):
    """Reveal-cancel unit by unit for (weight, bias, function or None); one sample."""
    runs = []
    for value in (x, start):
        values = [value]
        for weight, bias, function in layers:
            z = weight @ values[-1] + bias
            values.append(z if function is None else function(z))
        runs.append(values)
    m = torch.zeros_like(runs[0][-1])
    m[index] = 1
    for place in reversed(range(len(layers))):
        (weight, bias, function), h, h0 = layers[place], runs[0][place], runs[1][place]
        lower = torch.zeros_like(h)
        for k in range(len(m)):
            parts = weight[k] * (h - h0)
            up, down = parts.clamp(min=0).sum(), parts.clamp(max=0).sum()
            z0 = weight[k] @ h0 + bias[k]
            m_up = m_down = m[k]
            if function is not None:
                f = function
                dy_up = ((f(z0 + up) - f(z0)) + (f(z0 + down + up) - f(z0 + down))) / 2
                dy_down = ((f(z0 + down) - f(z0)) + (f(z0 + up + down) - f(z0 + up))) / 2
                m_up, m_down = m[k] * dy_up / up, m[k] * dy_down / down
            for i in range(len(h)):
                lower[i] += weight[k, i] * (m_up if parts[i] > 0 else m_down if parts[i] < 0 else (m_up + m_down) / 2)
        m = lower
    return m * (x - start)


def test_reveal_cancel_unit_by_unit():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)
    ).double().eval()  # fmt: skip
    norm = net[1]
    with torch.no_grad():
        norm.weight.copy_(normal(6))  # some below 0
        norm.running_mean.copy_(normal(6, seed=1))
        norm.running_var.fill_(2.0)
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    folded = scale[:, None] * net[0].weight, scale * (net[0].bias - norm.running_mean) + norm.bias
    layers = [(*folded, F.relu), (net[3].weight, net[3].bias, torch.tanh), (net[5].weight, net[5].bias, None)]
    x, start = normal(3, 5).double(), normal(3, 5, seed=4).double()
    with torch.no_grad():
        expected = torch.stack([revealed(layers, row, row0, 1) for row, row0 in zip(x, start, strict=True)])
    result = deep_lift(net, x, target=1, baseline=start, rule="reveal_cancel")
    torch.testing.assert_close(result.values, expected)
    assert not torch.allclose(result.values, deep_lift(net, x, target=1, baseline=start).values)


def test_reveal_cancel_is_complete_on_every_row(case):
    if case.name not in OTHER_ROUTE:
        result = deep_lift(case.build().double(), double(case.example()), target=case.target, rule="reveal_cancel")
        assert completes(result, 1e-5 if case.name in SINGLE else 1e-9)


@pytest.mark.parametrize("name", ["levit", "bert", "convnext"])
def test_reveal_cancel_is_complete_on_families(name):
    """LeViT has batch norms that flatten batch and tokens."""
    model, x, target = family(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the scores of LeViT hardly change
        result = deep_lift(copy.deepcopy(model).double(), double(x), target=target, rule="reveal_cancel")
    assert completes(result, 1e-4 if name == "levit" else 1e-9)


def test_reveal_cancel_leaves_a_function_where_a_part_is_outside_of_it_to_rescale():
    model = Function(lambda x: torch.log(x[:, :1] + x[:, 1:]))
    x, start = torch.tensor([[9.0, -5.0]]).double(), torch.tensor([[1.0, 4.5]]).double()
    result = deep_lift(model, x, target=0, baseline=start, rule="reveal_cancel")
    assert completes(result)
    torch.testing.assert_close(result.values, deep_lift(model, x, target=0, baseline=start).values)
    start = torch.tensor([[8.0, -4.5]]).double()  # each part leads to a number
    assert completes(deep_lift(model, x, target=0, baseline=start, rule="reveal_cancel"))


def test_an_unknown_rule_is_refused():
    with pytest.raises(OptionError, match="reveal_cancel"):
        deep_lift(CASES["mlp"].build(), CASES["mlp"].example(), rule="reveal")
