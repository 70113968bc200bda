import math
import warnings

import pytest
import torch
from torch import nn

from layerlens.analyzers.common.features.baselines import gaussian_blur
from layerlens.analyzers.saliency import integrated_gradients, saliency
from layerlens.analyzers.saliency.path.blur_ig import blur_ig
from layerlens.analyzers.saliency.path.guided_ig import GuidedPath, guided_ig
from layerlens.analyzers.saliency.path.layer_paths import internal_influence, layer_conductance
from layerlens.analyzers.saliency.path.xrai import xrai
from layerlens.errors import InputError, LayerNotFound, OptionError, TargetError
from tests.cases import CASES, normal


@pytest.mark.parametrize(
    ("shape", "sigmas"),
    [
        ((2, 3, 24, 20), {2: 4.0, 3: 0.4}),  # wide, for many lines: a matrix
        ((1, 2, 300), {2: 9.0}),  # few lines: a convolution
        ((2, 5, 2), {1: 3.0, 2: 0.0}),
        ((1, 40, 1), {1: 60.0, 2: 1.0}),
    ],
)
def test_a_blur_is_the_mean_under_a_gaussian_whose_ends_go_on(shape, sigmas):
    x = normal(*shape).double()
    expected = x.clone()
    for axis, sigma in sigmas.items():
        size, radius = shape[axis], max(1, round(3 * sigma))
        if sigma and size > 1:
            steps = range(-radius, radius + 1)
            weights = [math.exp(-0.5 * (step / sigma) ** 2) for step in steps]
            lines = [
                sum(
                    weight * expected.select(axis, min(max(place + step, 0), size - 1))
                    for step, weight in zip(steps, weights, strict=True)
                )
                / sum(weights)
                for place in range(size)
            ]
            expected = torch.stack(lines, dim=axis)
    torch.testing.assert_close(gaussian_blur(x, sigmas), expected)
    torch.testing.assert_close(gaussian_blur(x.float(), sigmas), expected.float())


class Squares(nn.Module):
    """sum of w x^2 + b x: its gradient is linear, so each straight piece has a closed form."""

    def __init__(self, *shape):
        super().__init__()
        self.w, self.b = nn.Parameter(normal(*shape).double()), nn.Parameter(normal(*shape, seed=1).double())

    def forward(self, x):
        return (self.w * x.square() + self.b * x).flatten(1).sum(dim=1, keepdim=True)


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Sigmoid(), nn.Linear(6, 3)).double()


def test_blur_ig_of_a_separable_score_in_closed_form():
    model, x = Squares(2, 9, 11), normal(2, 2, 9, 11).double()
    result = blur_ig(model, x, max_sigma=0.2, steps=3)
    start = gaussian_blur(x, {2: 0.2 * 9, 3: 0.2 * 11})
    expected = model.w * (x.square() - start.square()) + model.b * (x - start)  # whatever the way
    torch.testing.assert_close(result.tensor, expected.detach())
    assert float(result.checks["completeness gap"].max()) < 1e-12 and result.checks["steps"].tolist() == [3, 3]


def test_blur_ig_is_the_path_integral_of_the_paper():
    model, x = CASES["cnn"].build().double(), CASES["cnn"].example().double()
    found = blur_ig(model, x, target=1, steps=400, max_steps=400, tolerance=math.inf)
    count, total = 4000, torch.zeros_like(x)
    for index in range(count):  # eq. 4 by its definition: dS/dL dL/dsigma, and small steps of sigma
        low, high = 0.25 * index / count, 0.25 * (index + 1) / count
        blurs = [gaussian_blur(x, {2: part * 8, 3: part * 8}) for part in (low, (low + high) / 2, high)]
        leaf = blurs[1].requires_grad_()
        total += (blurs[0] - blurs[2]).detach() * torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0]
    assert torch.cosine_similarity(found.tensor.flatten(1), total.flatten(1)).min() > 0.99
    torch.testing.assert_close(found.tensor.sum((1, 2, 3)), total.sum((1, 2, 3)), rtol=0.02, atol=1e-3)


def test_blur_ig_blurs_time_in_series_and_refuses_tables_and_tokens():
    series = normal(2, 30, 3).double()
    net = nn.Sequential(nn.Flatten(), nn.Linear(90, 2)).double()
    with pytest.warns(UserWarning, match="no layer shows which axis .* the longer one is taken, axis 1"):
        result = blur_ig(net, series, target=0, steps=2)
    start = gaussian_blur(series, {1: 0.25 * 30})
    torch.testing.assert_close(result.tensor, ((series - start) * net[1].weight[0].reshape(30, 3)).detach())
    with pytest.raises(InputError, match=r"blur_ig needs an input with places .* got 0 float32 \(2, 5\)"):
        blur_ig(nn.Linear(5, 2), normal(2, 5), target=0)
    with pytest.raises(InputError, match=r"integrated_gradients takes any"):
        blur_ig(CASES["encoder"].build(), CASES["encoder"].example(), target=0)


def published(model, x, start, steps, fraction, max_dist):
    """Algorithm 1 of Kapishnikov et al. 2021 on one sample, value by value; gradients at both ends of a step."""
    at, total = start.clone(), torch.zeros_like(x)
    length = (x - start).abs().sum()

    def slope_at(point):
        leaf = point[None].clone().requires_grad_()
        return torch.autograd.grad(model(leaf).sum(), leaf)[0][0]

    slope = slope_at(at)
    for step in range(1, steps + 1):
        before, alpha = at.clone(), step / steps
        low, high = max(alpha - max_dist, 0), min(alpha + max_dist, 1)
        for i in range(len(x)):
            if (at[i] - start[i]) / (x[i] - start[i]) < low:
                at[i] = start[i] + low * (x[i] - start[i])
        goal = length * (1 - alpha)
        limit = start + high * (x - start)
        while (at - x).abs().sum() > goal + 1e-9 * length:
            open_ = [i for i in range(len(x)) if abs(at[i] - limit[i]) > 1e-12]
            if not open_:
                break
            size = torch.tensor([float(slope[i].abs()) if i in open_ else math.inf for i in range(len(x))])
            bound = size.sort().values[int(fraction * (len(x) - 1))]
            chosen = [i for i in open_ if size[i] <= bound.double() + 1e-15]
            room = sum(float((at[i] - limit[i]).abs()) for i in chosen)
            gamma = min(1.0, float((at - x).abs().sum() - goal) / room)
            for i in chosen:
                at[i] = at[i] + gamma * (limit[i] - at[i])
        new = slope_at(at)
        total += (at - before) * (slope + new) / 2
        slope = new
    assert torch.allclose(at, x)
    return total


@pytest.mark.parametrize(("fraction", "max_dist"), [(0.25, 0.02), (0.1, 0.3), (0.5, 1.0), (1.0, 0.0)])
def test_guided_ig_follows_the_published_path(fraction, max_dist):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    x, start = normal(2, 12).double(), normal(12, seed=7).double()
    options = {"steps": 11, "fraction": fraction, "max_dist": max_dist, "tolerance": math.inf}
    found = guided_ig(model, x, baseline=start, **options)
    for row in range(2):
        expected = published(model, x[row], start, 11, fraction, max_dist)
        torch.testing.assert_close(found.tensor[row], expected, rtol=1e-5, atol=1e-7)


def test_guided_ig_of_a_separable_quadratic_is_exact_on_any_path_and_straight_without_distance():
    model, x = Squares(6), normal(3, 6).double()
    for distance in (0.0, 0.5, 1.0):
        result = guided_ig(model, x, max_dist=distance, steps=7)
        torch.testing.assert_close(result.tensor, (model.w * x.square() + model.b * x).detach())
        assert float(result.checks["completeness gap"].max()) < 1e-6
    net = two_layers()
    straight = guided_ig(net, normal(2, 5).double(), target=1, max_dist=0.0, steps=400)
    whole = integrated_gradients(net, normal(2, 5).double(), target=1, steps=200)
    torch.testing.assert_close(straight.tensor, whole.tensor, rtol=1e-3, atol=1e-5)


def test_guided_path_ends_with_values_that_do_not_move():
    path = GuidedPath(torch.zeros(4).double(), torch.tensor([0.0, 0.0, 1.0, -2.0]).double(), 0.25, 0.02)
    for step in range(1, 6):
        path.step(torch.ones(4).double(), step / 5)
    path.gather(torch.ones(4).double())
    torch.testing.assert_close(path.at, path.end)
    torch.testing.assert_close(path.total, path.end)


def test_guided_ig_warns_when_its_sum_is_far_off():
    class Step(nn.Module):
        def forward(self, x):
            return x + 5 * (x > 0.5).to(x)

    with pytest.warns(UserWarning, match=r"guided_ig: the values \(gap .* integrated_gradients"):
        guided_ig(Step(), torch.ones(1, 1), steps=4)


@pytest.mark.parametrize("layer", ["0", "1", "2", "3"])
def test_layer_conductance_is_a_dense_integral_and_that_of_captum(layer):
    from captum.attr import LayerConductance

    model, x, start = two_layers(), normal(2, 5).double(), normal(1, 5, seed=3).double()
    found = layer_conductance(model, x, target=2, where=layer, baseline=start, steps=200)
    assert found.settings["where"] == layer and float(found.checks["completeness gap"].max()) < 1e-4
    steps, total = 2000, torch.zeros_like(found.tensor)
    ahead, rest = model[: int(layer) + 1], model[int(layer) + 1 :]
    for index in range(steps):
        low, high = (ahead(start + part * (x - start)).detach() for part in (index / steps, (index + 1) / steps))
        leaf = ahead(start + (index + 0.5) / steps * (x - start)).detach().requires_grad_()
        total += (high - low) * torch.autograd.grad(rest(leaf)[:, 2].sum(), leaf)[0]
    torch.testing.assert_close(found.tensor, total, rtol=1e-4, atol=1e-6)
    theirs = LayerConductance(model, model[int(layer)]).attribute(x, start, target=2, n_steps=500)
    torch.testing.assert_close(found.tensor, theirs, rtol=0.03, atol=3e-3)
    fixed = {"target": 2, "where": layer, "baseline": start, "tolerance": math.inf}
    middle = layer_conductance(model, x, steps=2000, quadrature="riemann_middle", **fixed)
    torch.testing.assert_close(middle.tensor, total, rtol=1e-9, atol=1e-12)
    few = {
        rule: layer_conductance(model, x, steps=7, quadrature=f"riemann_{rule}", batch_size=3, **fixed).tensor
        for rule in ("left", "right", "trapezoid")
    }
    theirs = LayerConductance(model, model[int(layer)]).attribute(x, start, 2, n_steps=7, method="riemann_trapezoid")
    torch.testing.assert_close(few["left"], theirs, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(few["trapezoid"], (few["left"] + few["right"]) / 2)
    with pytest.raises(OptionError, match="riemann_left"):
        layer_conductance(model, x, quadrature="gausslegendre", **fixed)


@pytest.mark.parametrize("layer", ["0", "2"])
def test_internal_influence_is_that_of_captum(layer):
    from captum.attr import InternalInfluence

    model, x = two_layers(), normal(2, 5).double()
    found = internal_influence(model, x, target=1, where=layer, baseline=0.5, steps=30)
    theirs = InternalInfluence(model, model[int(layer)]).attribute(x, 0.5, target=1, n_steps=30)
    torch.testing.assert_close(found.tensor, theirs, rtol=1e-6, atol=1e-8)
    assert found.units == "score per activation"


@pytest.mark.parametrize("method", [layer_conductance, internal_influence])
def test_layers_are_read_in_every_kind_of_model(method):
    for name, kind in (("cnn", nn.Conv2d), ("encoder", nn.Embedding), ("lstm", nn.LSTM), ("hf_bert", nn.Linear)):
        case = CASES[name]
        model = case.build()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        layer = next(path for path, module in model.named_modules() if isinstance(module, kind))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = method(model, case.example(), target=1, where=layer, steps=4)
        assert found.tensor.isfinite().all() and found.tensor.abs().sum() > 0
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("method", [layer_conductance, internal_influence])
def test_the_batch_does_not_matter_for_a_layer(method):
    model, x = CASES["cnn"].build().double(), CASES["cnn"].example().double()
    layer = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    whole = method(model, x, target=1, where=layer, steps=6, batch_size=100)
    for size in (1, 3):
        torch.testing.assert_close(
            method(model, x, target=1, where=layer, steps=6, batch_size=size).tensor, whole.tensor
        )


def test_a_layer_beside_the_way_has_a_gap_and_says_so():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x):
            return self.a(x) + self.b(x)

    with pytest.warns(UserWarning, match=r"layer_conductance: after 2 steps the values \(gap "):
        layer_conductance(Beside(), torch.ones(1, 3), where="a", steps=2, max_steps=2)


def test_layer_methods_ask_for_a_layer_on_the_way():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    for name in ("layer_conductance", "internal_influence"):
        with pytest.raises(OptionError, match=rf"{name} is about the units of a layer: give where="):
            saliency(model, torch.ones(1, 3), target=0, method=name)
        with pytest.raises(LayerNotFound):
            saliency(model, torch.ones(1, 3), target=0, method=name, where="nowhere")

    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.out = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.out(x) + self.fc(x).detach().sum(dim=1, keepdim=True)

    with pytest.raises(TargetError, match=r"does not depend on what layer 'fc' returned"):
        layer_conductance(Detached(), torch.ones(1, 3), target=0, where="fc")


def test_xrai_takes_the_region_that_decides():
    class Corner(nn.Module):
        def forward(self, x):
            return x[:, :, :16, :16].sum(dim=(1, 2, 3))[:, None]

    torch.manual_seed(0)
    x = torch.rand(1, 3, 64, 64)
    x[:, :, :16, :16] += 2
    found = xrai(Corner(), x, scales=[16, 64]).tensor[0]
    assert found[:16, :16].min() > found[22:, 22:].max() and found.shape == (64, 64)
    assert len(found.unique()) < 80  # whole regions
    other = xrai(Corner(), x, base="input_x_gradient", scales=[16]).tensor[0]
    assert other[:14, :14].min() > other[22:, 22:].max()


def test_xrai_ranks_large_pictures_on_a_smaller_grid_and_says_what_it_needs():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 2))
    result = xrai(net, normal(1, 3, 300, 270), target=0, base="input_x_gradient", scales=[9])
    assert result.tensor.shape == (1, 300, 270) and result.tensor.isfinite().all()
    with pytest.raises(InputError, match=r"xrai needs one image batch"):
        xrai(nn.Linear(3, 2), torch.ones(1, 3))
    with pytest.raises(OptionError, match=r"scales must be whole numbers"):
        xrai(net, normal(1, 3, 8, 8), scales=[0])
    with pytest.raises(OptionError, match=r"unknown base method 'gradiant'"):
        xrai(net, normal(1, 3, 8, 8), base="gradiant")


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (guided_ig, {"fraction": 0}, "fraction must be above 0"),
        (guided_ig, {"max_dist": 2}, "max_dist must be between"),
        (guided_ig, {"steps": 0}, "steps must be"),
        (blur_ig, {"max_sigma": 0}, "max_sigma must be above 0"),
        (blur_ig, {"tolerance": 0}, "tolerance must be above 0"),
    ],
)
def test_bad_options_are_errors(method, options, message):
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with pytest.raises(OptionError, match=message):
        method(net, normal(1, 3, 4, 4), target=0, **options)


def test_layers_that_follow_each_other_are_complete_each_by_itself():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = normal(2, 3).double()
    found = layer_conductance(net, x, target=1, where=["1", "3"])
    change = (net(x) - net(0 * x))[:, 1].detach()
    for values in found.values.values():
        torch.testing.assert_close(values.sum(dim=1), change, rtol=0.05, atol=0)
    assert (found.checks["completeness gap"] < 0.05).all() and (found.checks["steps"] == 50).all()
