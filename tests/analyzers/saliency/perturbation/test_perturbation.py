"""Perturbation methods against closed forms, all coalitions by brute force, and captum where it is right."""

import itertools
import math

import pytest
import torch
from torch import nn

import layerlens
from layerlens.errors import InputError, OptionError
from tests.cases import normal

METHODS = ("feature_ablation", "occlusion", "shapley_sampling", "kernel_shap", "lime", "rise", "sobol")


class Net(nn.Module):
    """A small network with interactions; it may refuse gradients."""

    def __init__(self, width=5, rough=False):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.rough = rough

    def forward(self, x):
        out = self.body(x)
        return (out * 4).round() / 4 if self.rough else out


def shapley(function, x, base):
    """Shapley values `(d,)` of one sample by all 2^d coalitions."""
    count = len(x)
    scores = {}
    for kept in itertools.product((0, 1), repeat=count):
        mask = torch.tensor(kept, dtype=x.dtype)
        scores[kept] = function((mask * x + (1 - mask) * base)[None]).item()
    values = []
    for j in range(count):
        total = 0.0
        for kept, score in scores.items():
            if kept[j]:
                continue
            size = sum(kept)
            weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            joined = (*kept[:j], 1, *kept[j + 1 :])
            total += weight * (scores[joined] - score)
        values.append(total)
    return torch.tensor(values, dtype=x.dtype)


@pytest.fixture
def game():
    model, x = Net(), normal(2, 5).double()
    truth = torch.stack([shapley(lambda z: model(z)[:, 1], row, torch.zeros(5).double()) for row in x])
    return model, x, truth


# -- Shapley values ----------------------------------------------------------------------------------------------------


def test_kernel_shap_with_all_coalitions_is_exact(game):
    model, x, truth = game
    found = layerlens.saliency(model, x, target=1, method="kernel_shap")
    torch.testing.assert_close(found.tensor, truth, atol=1e-9, rtol=0)
    assert found.settings["exact"] and found.settings["samples"] == 30 and found.standard_error is None
    assert found.checks["efficiency gap"].max() < 1e-9


def test_drawn_coalitions_come_near_and_say_how_near():
    model, x = Net(10), normal(2, 10).double()
    truth = layerlens.saliency(model, x, target=1, method="kernel_shap", samples=2000).tensor
    drawn = layerlens.saliency(model, x, target=1, method="kernel_shap", samples=300)
    assert not drawn.settings["exact"] and drawn.settings["samples"] == 300
    off = (drawn.tensor - truth).abs()
    assert off.max() < 5 * drawn.standard_error.max() and off.mean() < 3 * drawn.standard_error.mean()
    assert drawn.standard_error.max() < 0.1 * truth.abs().max()
    assert drawn.checks["efficiency gap"].max() < 1e-9


def test_shapley_sampling_nears_the_truth_within_its_error(game):
    model, x, truth = game
    found = layerlens.saliency(model, x, target=1, method="shapley_sampling", permutations=400)
    assert ((found.tensor - truth).abs() <= 4.5 * found.standard_error + 1e-12).all()
    assert (found.tensor - truth).abs().max() < 0.05 * truth.abs().max()
    assert found.checks["efficiency gap"].max() < 1e-9


def test_pairs_of_orders_are_exact_on_pairs_of_features():
    class Pairs(nn.Module):
        def forward(self, x):  # interactions of two: an order and its reverse average to the Shapley value
            return (x[:, :1] * x[:, 1:2] + 3 * x[:, 2:3] * x[:, 3:4]).double()

    x = normal(2, 4).double()
    found = layerlens.saliency(Pairs(), x, target=0, method="shapley_sampling", permutations=2).tensor
    expected = torch.stack([x[:, 0] * x[:, 1] / 2] * 2 + [3 * x[:, 2] * x[:, 3] / 2] * 2, dim=1)
    torch.testing.assert_close(found, expected)


def test_the_old_tolerance_is_until_of_intervals(game):
    model, x, _ = game
    with pytest.warns(DeprecationWarning, match=r"until=0\.0822|until=0\.0823"):
        long = layerlens.saliency(model, x, target=1, method="shapley_sampling", permutations=2000, tolerance=0.05)
    assert long.settings["permutations"] < 2000
    assert (long.standard_error <= 0.05 * long.tensor.abs().amax(dim=1, keepdim=True)).all()


def test_captum_agrees_where_it_is_right(game):
    from captum.attr import FeatureAblation, Occlusion

    model, x, _ = game
    ours = layerlens.saliency(model, x, target=1, method="feature_ablation").tensor
    torch.testing.assert_close(ours, FeatureAblation(model).attribute(x, target=1))
    conv = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 36, 2)).double()
    image = normal(2, 2, 8, 8).double()
    ours = layerlens.saliency(conv, image, target=1, method="occlusion", window=3, stride=1).tensor
    theirs = Occlusion(conv).attribute(image, sliding_window_shapes=(2, 3, 3), strides=(2, 1, 1), target=1)
    torch.testing.assert_close(ours.float(), theirs)  # captum's are float32 whatever was given


# -- linear and additive models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["feature_ablation", "occlusion", "shapley_sampling", "kernel_shap"])
def test_additive_models_get_each_term(method):
    class Additive(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0] ** 3, torch.sin(x[:, 1]), x[:, 2].exp() - 1], dim=1).sum(1, keepdim=True)

    x = normal(3, 3).double()
    expected = torch.stack([x[:, 0] ** 3, torch.sin(x[:, 1]), x[:, 2].exp() - 1], dim=1)
    torch.testing.assert_close(layerlens.saliency(Additive(), x, target=0, method=method).tensor, expected)


def test_lime_is_the_weighted_ridge_regression():
    model, x = Net(), normal(1, 5).double()
    found = layerlens.saliency(model, x, target=1, method="lime", samples=64, ridge=0.3, width=0.4)
    keep = (torch.rand(64, 5, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    keep[0] = 1
    scores = model(keep * x)[:, 1].detach()
    weight = torch.exp(-((1 - keep.mean(1).sqrt()) ** 2) / 0.4**2)
    design = torch.cat([keep, torch.ones(64, 1).double()], dim=1)
    penalty = 0.3 * torch.diag(torch.tensor([1.0] * 5 + [0.0]).double())
    solved = torch.linalg.solve(design.T @ (weight[:, None] * design) + penalty, design.T @ (weight * scores))
    torch.testing.assert_close(found.tensor[0], solved[:5])
    assert 0 < found.checks["fit"].item() <= 1


def test_sobol_indices_of_a_linear_model():
    net = nn.Linear(3, 1).double()
    net.weight.data.copy_(torch.tensor([[3.0, 1.0, 0.0]]))
    found = layerlens.saliency(net, torch.ones(1, 3).double(), target=0, method="sobol", draws=512)
    torch.testing.assert_close(found.tensor, torch.tensor([[0.9, 0.1, 0.0]]).double(), atol=0.03, rtol=0)
    assert not found.signed


def test_rise_by_regression_finds_the_weights_of_a_linear_model():
    net = nn.Linear(6, 1).double()
    x = normal(1, 6).double()
    found = layerlens.saliency(net, x, target=0, method="rise", samples=128)
    torch.testing.assert_close(found.tensor, (net.weight * x).detach(), atol=1e-4, rtol=1e-3)


def test_rise_as_published_is_the_mean_score_of_the_masks_that_keep_a_place():
    model, x = Net(), normal(1, 5).double()
    found = layerlens.saliency(model, x, target=1, method="rise", samples=32, sampling="random", estimate="mean")
    keep = (torch.rand(32, 5, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    expected = (model(keep * x)[:, 1:2] * keep).mean(dim=0) / 0.5
    torch.testing.assert_close(found.tensor[0], expected.detach())


def test_balanced_masks_know_more_than_random_ones_at_the_same_cost():
    torch.manual_seed(1)
    weights = torch.zeros(1, 1, 28, 28)
    weights[..., 4:12, 16:24] = 1

    class Sum(nn.Module):
        def forward(self, x):
            inside = (x * weights).sum(dim=(1, 2, 3)) / 64
            return (inside**2 + 0.5 * x.mean(dim=(1, 2, 3))).unsqueeze(1)

    image = torch.ones(1, 1, 28, 28)

    def overlap(**options):
        ranks = []
        for seed in range(6):
            found = layerlens.saliency(Sum(), image, target=0, method="rise", samples=60, seed=seed, **options).tensor
            chosen = found.flatten().topk(64).indices
            ranks.append(weights.flatten()[chosen].mean().item())
        return sum(ranks) / len(ranks)

    assert overlap() > overlap(sampling="random", estimate="mean") + 0.1


def test_extremal_masks_keep_what_matters_and_their_area():
    weights = torch.zeros(1, 1, 28, 28)
    weights[..., 4:12, 16:24] = 1

    class Sum(nn.Module):
        def forward(self, x):
            return (x * weights).sum(dim=(1, 2, 3)).unsqueeze(1)

    found = layerlens.saliency(
        Sum(), torch.ones(1, 1, 28, 28), target=0, method="extremal_mask", areas=[0.1], baseline="zero"
    )
    assert found.tensor[weights > 0].mean() > 0.7 and found.tensor[weights == 0].mean() < 0.15
    assert found.tensor.mean() == pytest.approx(0.1, abs=0.05)
    assert found.checks["score at area 0.1"].item() > 0.7 * 64


# -- batches, seeds, features, kinds of model --------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_gives_what_its_samples_give_alone_and_a_seed_gives_it_again(method):
    model, x = Net(6), normal(3, 6).double()
    few = {"samples": 24} if method in ("kernel_shap", "lime", "rise") else {}
    whole = layerlens.saliency(model, x, target=1, method=method, **few).tensor
    alone = torch.cat([layerlens.saliency(model, row[None], target=1, method=method, **few).tensor for row in x])
    small = layerlens.saliency(model, x, target=1, method=method, batch_size=2, **few).tensor
    torch.testing.assert_close(whole, alone)
    torch.testing.assert_close(whole, small)


@pytest.mark.parametrize("method", METHODS)
def test_no_gradient_is_needed(method):
    model, x = Net(rough=True), normal(2, 5).double()
    more = {"draws": 128} if method == "sobol" else {}  # its steps are far apart
    found = layerlens.saliency(model, x, target=1, method=method, **more)
    assert found.tensor.isfinite().all() and found.tensor.any()


def test_features_by_labels_channels_and_superpixels():
    conv = nn.Sequential(nn.Flatten(), nn.Linear(2 * 16, 1, bias=False)).double()
    x = normal(2, 2, 4, 4).double()
    product = conv[1].weight.detach().reshape(1, 2, 4, 4) * x
    by_channel = layerlens.saliency(conv, x, target=0, method="feature_ablation", features="channels").tensor
    torch.testing.assert_close(by_channel, product.sum(dim=(2, 3), keepdim=True).expand_as(x))
    labels = torch.full((4, 4), -1)
    labels[0], labels[1] = 7, 3
    given = layerlens.saliency(conv, x, target=0, method="feature_ablation", features=labels).tensor
    torch.testing.assert_close(given[:, :, 0], product[:, :, 0].sum(dim=(1, 2))[:, None, None].expand(2, 2, 4))
    assert not given[:, :, 2:].any()
    parts = layerlens.saliency(conv, x, target=0, method="kernel_shap", features="superpixels")
    assert parts.tensor.shape == x.shape
    four = layerlens.saliency(conv, x, target=0, method="feature_ablation", features=4)
    assert four.settings["features"] == 4


def test_tokens_are_features_and_padding_is_none():
    torch.manual_seed(0)

    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(9, 3).double()

        def forward(self, input_ids, attention_mask=None):
            states = self.embedding(input_ids)
            states = states if attention_mask is None else states * attention_mask.unsqueeze(-1)
            return states.sum(dim=1)

    ids, mask = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    model = Text()
    for method in ("feature_ablation", "shapley_sampling", "kernel_shap"):
        found = layerlens.saliency(model, {"input_ids": ids, "attention_mask": mask}, target=1, method=method).tensor
        torch.testing.assert_close(found, model.embedding(ids)[..., 1].detach() * mask)


def test_permutation_by_an_own_function_is_that_of_captum():
    from captum.attr import FeaturePermutation

    def rolled(x, mask):
        return torch.where(mask, x.roll(1, dims=0), x)

    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), normal(4, 3)
    expected = FeaturePermutation(model, perm_func=rolled).attribute(x, target=1)
    found = layerlens.saliency(model, x, target=1, method="permutation", perm_func=rolled, draws=1)
    torch.testing.assert_close(found.tensor, expected.to(x))
    assert found.settings["baseline"] == "rolled"
    with pytest.raises(layerlens.errors.OptionError, match="perm_func returned"):
        layerlens.saliency(model, x, target=1, method="permutation", perm_func=lambda x, mask: x[:1])


def test_permutation_takes_from_other_samples():
    model, x = Net(), normal(4, 5).double()
    found = layerlens.saliency(model, x, target=1, method="permutation", draws=60)
    expected = torch.zeros(4, 5).double()
    for row, j in itertools.product(range(4), range(5)):
        for other in set(range(4)) - {row}:
            changed = x[row].clone()
            changed[j] = x[other, j]
            expected[row, j] += (model(x[row][None])[0, 1] - model(changed[None])[0, 1]).item() / 3
    assert ((found.tensor - expected).abs() <= 4.5 * found.standard_error + 1e-9).all()
    with pytest.raises(InputError, match="batch of two"):
        layerlens.saliency(model, x[:1], target=1, method="permutation")


def test_what_does_not_fit_is_told():
    model, x = Net(), normal(1, 5).double()
    for options, match in (
        ({"method": "kernel_shap", "samples": 4}, "too few"),
        ({"method": "feature_ablation", "features": "superpixels"}, "no channels|superpixels are of images"),
        ({"method": "feature_ablation", "features": torch.ones(3, dtype=torch.int64)}, "do not broadcast"),
        ({"method": "feature_ablation", "features": torch.ones(5)}, "whole numbers"),
        ({"method": "occlusion", "window": 9}, "does not fit"),
        ({"method": "rise", "probability": 0.3}, "0.5 for balanced"),
        ({"method": "lime", "width": 0}, "width must be above 0"),
        ({"method": "shapley_sampling", "tolerance": -1}, "tolerance must be above 0"),
    ):
        with pytest.raises(OptionError, match=match):
            layerlens.saliency(model, x, target=1, **options)
    with pytest.raises(InputError, match="needs one image"):
        layerlens.saliency(model, x, target=1, method="extremal_mask")


def test_windows_that_do_not_divide_cover_the_input_whole():
    net = nn.Sequential(nn.Flatten(), nn.Linear(49, 1, bias=False)).double()
    x = torch.ones(1, 1, 7, 7).double()
    found = layerlens.saliency(net, x, target=0, method="occlusion", window=3, stride=2).tensor
    drops, cover = torch.zeros(7, 7).double(), torch.zeros(7, 7)
    weight = net[1].weight.detach().reshape(7, 7)
    for top, left in itertools.product((0, 2, 4), repeat=2):
        drops[top : top + 3, left : left + 3] += weight[top : top + 3, left : left + 3].sum()
        cover[top : top + 3, left : left + 3] += 1
    torch.testing.assert_close(found[0, 0], drops / cover)
