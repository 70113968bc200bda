"""Curvature of weights against closed forms and dense matrices."""

import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian

import layerlens
from layerlens import errors
from layerlens.analyzers.sensitivity import weight_sensitivity
from tests.cases import CASES, normal


def mlp(*sizes, act=nn.Tanh, seed=0):
    torch.manual_seed(seed)
    layers = []
    for here, after in itertools.pairwise(sizes):
        layers += [nn.Linear(here, after), act()]
    return nn.Sequential(*layers[:-1]).double()


def dense_traces(net, loss):
    """tr H_ll of every module with parameters, from the whole Hessian of `loss(output)`."""
    own = {name: p.detach() for name, p in net.named_parameters()}
    blocks = hessian(lambda p: loss(lambda x: functional_call(net, p, (x,))))(own)
    traces = {}
    for name, p in own.items():
        layer = name.rpartition(".")[0]
        block = blocks[name][name].reshape(p.numel(), p.numel())
        traces[layer] = traces.get(layer, 0) + float(block.trace())
    return torch.tensor(list(traces.values())).double()


# -- Fisher ----------------------------------------------------------------------------------------------------------


def test_fisher_of_least_squares_is_the_second_moment_and_half_the_hessian_of_the_squared_error():
    x, y = normal(40, 3).double(), normal(40, 2, seed=1).double()
    net = nn.Linear(3, 2, bias=False).double()
    expected = 2 * x.square().sum(dim=1).mean()  # two outputs, each tr X'X / N
    found = weight_sensitivity(net, x, likelihood="gaussian")
    torch.testing.assert_close(found.values[0], expected)
    torch.testing.assert_close(found.error[0], (2 * x.square().sum(dim=1)).std() / 40**0.5)
    torch.testing.assert_close(found.checks["relative"][0], (x.square().mean(dim=0) * net.weight.detach() ** 2).sum())
    own = weight_sensitivity(net, x, measure="hessian_trace", labels=y, likelihood="gaussian", probes=18)
    torch.testing.assert_close(own.values[0], expected)
    squared = weight_sensitivity(
        net,
        x,
        measure="hessian_trace",
        labels=y,
        loss=lambda out, label: (out - label).square().sum(dim=1).mean(),
        probes=18,
    )
    torch.testing.assert_close(squared.values[0], 2 * expected)  # tr 2 X'X / N for each output


def test_fisher_of_softmax_regression_is_closed_and_equals_the_hessian_for_any_labels():
    x = normal(30, 4).double()
    net = nn.Linear(4, 5).double()
    p = net(x).softmax(dim=1).detach()
    expected = ((p * (1 - p)).sum(dim=1) * (x.square().sum(dim=1) + 1)).mean()
    found = weight_sensitivity(net, x)
    torch.testing.assert_close(found.values[0], expected)
    assert found.method == "Fisher information, categorical, sum over classes"
    for labels in (torch.zeros(30).long(), torch.arange(30) % 5):
        curvature = weight_sensitivity(net, x, measure="hessian_trace", labels=labels, probes=75)
        torch.testing.assert_close(curvature.values[0], expected)
    probabilities = nn.Sequential(net, nn.Softmax(dim=1))
    torch.testing.assert_close(weight_sensitivity(probabilities, x).values[0], expected)


def test_fisher_equals_the_hessian_where_residuals_are_zero_and_not_elsewhere():
    net, x = mlp(3, 6, 2), normal(20, 3).double()
    at_fit = net(x).detach()
    options = {"measure": "hessian_trace", "likelihood": "gaussian", "probes": 90}
    fisher = weight_sensitivity(net, x, likelihood="gaussian").values
    torch.testing.assert_close(weight_sensitivity(net, x, labels=at_fit, **options).values, fisher)
    away = weight_sensitivity(net, x, labels=at_fit + 3, **options).values
    assert float((away - fisher).abs().max()) > 0.1 * float(fisher.max())


def test_of_many_classes_labels_are_drawn_and_the_error_tells_how_far_off():
    net, x = mlp(3, 8, 25), normal(12, 3).double()
    y = net(x)
    p = y.softmax(dim=1).detach()
    expected = torch.zeros(2).double()
    for row in range(12):
        for label in range(25):
            gradients = torch.autograd.grad(y[row].log_softmax(0)[label], list(net.parameters()), retain_graph=True)
            squares = [float(g.square().sum()) for g in gradients]
            expected += (
                float(p[row, label]) * torch.tensor([sum(squares[:2]), sum(squares[2:])], dtype=torch.float64) / 12
            )
    found = weight_sensitivity(net, x, draws=60)
    assert "60 drawn labels a sample" in found.method
    assert bool(((found.values - expected).abs() < 4 * found.checks["draw error"]).all())
    assert bool((found.checks["draw error"] < 0.1 * expected).all())
    few = [weight_sensitivity(net, x, draws=2, seed=seed) for seed in range(20)]
    spread = torch.stack([one.values for one in few]).std(dim=0)
    told = torch.stack([one.checks["draw error"] for one in few]).square().mean(dim=0).sqrt()
    torch.testing.assert_close(told, spread, rtol=0.4, atol=0)


def test_random_signs_and_the_sum_over_outputs_agree():
    wide, x = mlp(3, 4, 30), normal(6, 3).double()
    found = weight_sensitivity(wide, x, likelihood="gaussian", draws=100)
    slow = torch.zeros(2).double()
    for row in range(6):
        for k in range(30):
            parts = torch.autograd.grad(wide(x[row : row + 1])[0, k], list(wide.parameters()))
            squares = [float(part.square().sum()) for part in parts]
            slow += torch.tensor([sum(squares[:2]), sum(squares[2:])], dtype=torch.float64) / 6
    assert bool(((found.values - slow).abs() <= 4 * found.checks["draw error"] + 1e-9).all())


def test_the_empirical_fisher_vanishes_on_a_fitted_set_and_the_fisher_does_not():
    torch.manual_seed(0)
    x, labels = normal(12, 8).double(), torch.arange(12) % 3
    net = mlp(8, 16, 3)
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
    net.zero_grad()
    with pytest.warns(UserWarning, match="vanishes where the model has fitted"):
        empirical = weight_sensitivity(net, x, labels=labels, empirical=True)
    true = weight_sensitivity(net, x)
    assert bool((empirical.values < 0.02 * true.values).all())
    slow = []
    for row in range(12):
        loss = nn.functional.cross_entropy(net(x[row : row + 1]), labels[row : row + 1])
        slow.append(sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(net[2].parameters()))))
    assert float(empirical.values[1]) == pytest.approx(sum(slow) / 12)
    with pytest.raises(errors.InputError, match="the empirical Fisher needs labels"), pytest.warns(UserWarning):
        weight_sensitivity(net, x, empirical=True)


def test_bernoulli_and_places_of_a_text():
    x = normal(9, 3).double()
    net = nn.Linear(3, 1).double()
    p = net(x).sigmoid().detach().squeeze(1)
    found = weight_sensitivity(net, x, likelihood="bernoulli")
    torch.testing.assert_close(found.values[0], (p * (1 - p) * (x.square().sum(dim=1) + 1)).mean())

    class PerToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 4).double()

        def forward(self, states, attention_mask):
            return {"logits": self.head(states)}

    states, mask = normal(5, 6, 3).double(), torch.ones(5, 6).long()
    mask[2:, 4:] = 0
    text = PerToken()
    p = text.head(states).softmax(dim=2).detach()
    terms = (p * (1 - p)).sum(dim=2) * (states.square().sum(dim=2) + 1)
    expected = ((terms * mask).sum(dim=1) / mask.sum(dim=1)).mean()
    found = weight_sensitivity(text, {"states": states, "attention_mask": mask}, draws=150)
    assert found.settings["likelihood"] == "categorical"
    assert abs(float(found.values[0] - expected)) < 4 * float(found.checks["draw error"][0])
    labels = torch.randint(4, (5, 6))
    labels[0, 0] = -100
    curvature = weight_sensitivity(
        text, {"states": states, "attention_mask": mask}, measure="hessian_trace", labels=labels, probes=48
    )
    mask[0, 0] = 0
    torch.testing.assert_close(curvature.values[0], ((terms * mask).sum(dim=1) / mask.sum(dim=1)).mean())


# -- Hessian ---------------------------------------------------------------------------------------------------------


def test_the_trace_is_that_of_the_dense_hessian_and_can_be_negative():
    net, x, labels = mlp(3, 5, 4), normal(8, 3).double(), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    expected = dense_traces(net, lambda f: nn.functional.cross_entropy(f(x), labels))
    exact = weight_sensitivity(net, x, measure="hessian_trace", labels=labels, probes=72)
    torch.testing.assert_close(exact.values, expected)
    assert exact.error.tolist() == [0, 0]
    few = weight_sensitivity(net, x, measure="hessian_trace", labels=labels, probes=30)
    assert bool(((few.values - expected).abs() <= 4 * few.error).all()) and float(few.error.min()) > 0
    joint = weight_sensitivity(net, x, measure="hessian_trace", labels=labels, estimator="hutchinson", probes=500)
    assert bool(((joint.values - expected).abs() <= 4 * joint.error).all())
    assert bool((joint.error < 0.15 * expected).all())

    def bowl(output, labels):  # turned upside down
        return -output.square().sum(dim=1).mean()

    down = weight_sensitivity(net, x, measure="hessian_trace", loss=bowl, probes=72)
    torch.testing.assert_close(down.values, dense_traces(net, lambda f: bowl(f(x), None)))
    assert float(down.values[1]) < 0 and down.signed


def test_hutch_plus_plus_scatters_less_than_hutchinson_on_a_spectrum_that_decays():
    net, x = mlp(10, 12, 3), normal(6, 10).double()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    spread = {}
    for estimator in ("hutch++", "hutchinson"):
        runs = [
            weight_sensitivity(
                net, x, "2", measure="hessian_trace", labels=labels, probes=30, estimator=estimator, seed=seed
            ).values
            for seed in range(12)
        ]
        spread[estimator] = float(torch.stack(runs).std(dim=0)[0])
    assert spread["hutch++"] < 0.5 * spread["hutchinson"]


@pytest.mark.parametrize("name", ["lstm", "encoder", "hf_bert", "hf_llama", "depthwise"])
def test_attention_recurrence_and_operations_without_a_second_derivative_are_reached(name):
    case = CASES[name]
    model, x = case.build().double(), case.example()
    x = x.double() if isinstance(x, torch.Tensor) else x
    layer = {"lstm": "rnn", "encoder": "encoder.layers.0.self_attn", "depthwise": "2.expand"}.get(name)
    layer = layer or next(path for path, _ in model.named_modules() if path.endswith(("query", "q_proj")))

    def loss(output, labels):
        return layerlens.targets.target.main_output(output).square().mean()

    found = weight_sensitivity(model, x, layer, measure="hessian_trace", loss=loss, estimator="hutchinson", probes=3)
    module = model.get_submodule(layer)
    names = [f"{layer}.{part}" for part, _ in module.named_parameters()]
    if name == "depthwise":  # as it would be written with operations that can be differentiated twice
        assert "differences of gradients (hardsigmoid_backward)" in found.method
        model[2].gate = PlainGate()
        plain = weight_sensitivity(
            model, x, layer, measure="hessian_trace", loss=loss, estimator="hutchinson", probes=3
        )
        assert "double backward" in plain.method
        torch.testing.assert_close(found.values, plain.values, rtol=1e-5, atol=1e-9)
        return
    generator = torch.Generator().manual_seed(0)
    own = {key: p.detach() for key, p in model.named_parameters()}
    size = sum(own[key].numel() for key in names)
    signs = torch.randint(2, (3, size), generator=generator).double() * 2 - 1
    inputs = layerlens.inputs.inputs.as_inputs(x)
    step, forms = 1e-3, []

    def slope(flat):
        parts = torch.split(flat, [own[key].numel() for key in names])
        moved = {key: own[key] + part.reshape(own[key].shape) for key, part in zip(names, parts, strict=True)}
        moved = {key: tensor.requires_grad_() for key, tensor in moved.items()}
        value = loss(functional_call(model, moved, inputs.args, inputs.kwargs), None)
        return torch.cat([part.flatten() for part in torch.autograd.grad(value, list(moved.values()))])

    for v in signs:  # Llama's norms are in float32 whatever the model is, hence the step
        forms.append(float(v @ (slope(step * v) - slope(-step * v)) / (2 * step)))
    assert float(found.values[0]) == pytest.approx(sum(forms) / 3, rel=5e-3, abs=1e-6)


class PlainGate(nn.Module):
    """nn.Hardsigmoid of clamps, which have second derivatives."""

    def forward(self, x):
        return (x / 6 + 0.5).clamp(0, 1)
