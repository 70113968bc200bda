"""The analytic ground truth of every method, in float64: a table from methods to what they must give.

Linear and additive models have a known answer for most: the gradient, the terms, or those less those of a reference.
The truth of the others is in a test of their own, which the table names.
"""

from pathlib import Path

import pytest
import torch
from torch import nn

import layerlens
from layerlens.analyzers.saliency import xrai as xrai_module
from layerlens.analyzers.saliency.saliency import known_methods
from tests.cases import normal

HERE = Path(__file__).parent
X, W, C = normal(2, 5).double(), normal(5, seed=1).double(), normal(5, seed=2).double()
REFERENCES = normal(3, 5, seed=3).double()
WIDE, U, V = normal(2, 12).double(), normal(12, seed=1).double(), normal(12, seed=2).double()
CAMS = "cam/test_cams.py::"
PROJECTION = CAMS + "test_eigen_cam_is_the_projection_on_the_first_singular_vector_with_a_sign"
POOLED = CAMS + "test_hi_res_cam_cam_and_grad_cam_agree_where_pooling_and_one_linear_layer_follow"


class Linear(nn.Module):
    """S(x) = sum of w x; the layer `terms` returns w x."""

    def __init__(self):
        super().__init__()
        self.terms = self.Terms()

    class Terms(nn.Module):
        def forward(self, x):
            return x * W

    def forward(self, x):
        return self.terms(x).sum(dim=1, keepdim=True)


class Additive(Linear):
    """S(x) = sum of w x + c x^2."""

    class Terms(nn.Module):
        def forward(self, x):
            return x * W + C * x * x


class Rectified(nn.Module):
    """S(x) = sum of v relu(u x)."""

    def forward(self, x):
        return (torch.relu(x * U) * V).sum(dim=1, keepdim=True)


def linear(x):
    return x * W


def additive(x):
    return x * W + C * x * x


def slope(x):
    return W + 2 * C * x


def shares(terms):
    return terms.square() / terms.square().sum(dim=1, keepdim=True)


def less_references(f):
    return f(X) - f(REFERENCES).mean(dim=0)


def less_other(f):
    return f(X) - f(X).flip(0)  # the only other sample


GIVEN = {"baselines": REFERENCES}
SURE, DRAWN = {"rtol": 1e-9, "atol": 1e-9}, {"rtol": 0.02, "atol": 0.02}
NEARLY = {"rtol": 1e-3, "atol": 1e-4}

ON_LINEAR = {
    "gradient": (W.expand(2, 5), {}, SURE),
    "smooth_grad": (W.expand(2, 5), {}, SURE),
    "smooth_grad_squared": (W.square().expand(2, 5), {}, SURE),
    "var_grad": (torch.zeros(2, 5).double(), {}, SURE),
    "deep_shap": (less_references(linear), GIVEN, SURE),
    "gradient_shap": (less_references(linear), GIVEN, SURE),
    "permutation": (less_other(linear), {"draws": 2}, SURE),
    "sobol": (shares(linear(X)), {"draws": 16384}, DRAWN),
    "rise": (linear(X), {"samples": 128}, NEARLY),
    "lime": (linear(X), {"ridge": 0.0}, SURE),
    "relevance": (linear(X), {"rules": "epsilon"}, SURE),
    "layer_conductance": (linear(X), {"where": "terms"}, SURE),
    "internal_influence": (torch.ones(2, 5).double(), {"where": "terms"}, SURE),
    "neuron_conductance": (linear(X), {"where": "terms", "unit": slice(None)}, SURE),
} | {
    name: (linear(X), {}, SURE)
    for name in (
        "input_x_gradient", "integrated_gradients", "guided_ig", "deep_lift", "feature_ablation", "occlusion",
        "shapley_sampling", "kernel_shap", "auto",
    )
}  # fmt: skip

ON_ADDITIVE = {
    "gradient": (slope(X), {}, SURE),
    "input_x_gradient": (X * slope(X), {}, SURE),
    "deep_shap": (less_references(additive), GIVEN, SURE),
    "gradient_shap": (less_references(additive), GIVEN | {"samples": 3000}, DRAWN),
    "smooth_grad": (slope(X), {"samples": 4000, "noise": 0.05}, DRAWN),
    "permutation": (less_other(additive), {"draws": 2}, SURE),
    "sobol": (shares(additive(X)), {"draws": 16384}, DRAWN),
    "rise": (additive(X), {"samples": 128}, NEARLY),
    "lime": (additive(X), {"ridge": 0.0}, SURE),
    "layer_conductance": (additive(X), {"where": "terms", "steps": 400, "max_steps": 400}, NEARLY),
    "internal_influence": (torch.ones(2, 5).double(), {"where": "terms"}, SURE),
    "guided_ig": (additive(X), {}, SURE),
} | {
    name: (additive(X), {}, SURE)
    for name in (
        "integrated_gradients", "deep_lift", "feature_ablation", "occlusion", "shapley_sampling", "kernel_shap", "auto",
    )
}  # fmt: skip

ON_RECTIFIED = {
    "guided_backprop": U * V.clamp(min=0) * (WIDE * U > 0),  # Springenberg et al. 2015: both signs count
    "deconvnet": (U * V.clamp(min=0)).expand(2, 12),  # Zeiler & Fergus 2014: that of the gradient
}

ELSEWHERE = {
    "blur_ig": "path/test_paths.py::test_blur_ig_of_a_separable_score_in_closed_form",
    "xrai": "test_ground_truth.py::test_xrai_takes_regions_by_the_mean_of_what_they_add",
    "extremal_mask": "perturbation/test_perturbation.py::test_extremal_masks_keep_what_matters_and_their_area",
    "centered_relevance": "test_tokens.py::test_a_linear_model_has_a_closed_form",
    "leave_one_out": "test_tokens.py::test_a_linear_model_has_a_closed_form",
    "grad_cam": "cam/test_grad_cam.py::test_equals_eq_1_and_2_by_hand_also_before_an_in_place_relu",
    "hi_res_cam": CAMS + "test_the_gradient_ones_by_hand",
    "layer_cam": CAMS + "test_the_gradient_ones_by_hand",
    "x_grad_cam": CAMS + "test_the_gradient_ones_by_hand",
    "grad_cam_plus_plus": CAMS + "test_the_gradient_ones_by_hand",
    "cam": POOLED,
    "eigen_cam": PROJECTION,
    "eigen_grad_cam": PROJECTION,
    "score_cam": CAMS + "test_score_cam_by_hand",
    "ablation_cam": CAMS + "test_ablation_cam_by_hand_also_where_the_score_is_negative",
    "finer_cam": CAMS + "test_finer_cam_by_hand",
    "guided_grad_cam": CAMS + "test_guided_grad_cam_is_the_product",
}


@pytest.mark.filterwarnings("ignore:var_grad.*zero everywhere")
@pytest.mark.parametrize("method", ON_LINEAR)
def test_on_a_linear_model(method):
    truth, options, near = ON_LINEAR[method]
    found = layerlens.saliency(Linear(), X, target=0, method=method, **options).tensor
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, truth, **near)


@pytest.mark.parametrize("method", ON_ADDITIVE)
def test_on_an_additive_model(method):
    truth, options, near = ON_ADDITIVE[method]
    found = layerlens.saliency(Additive(), X, target=0, method=method, **options).tensor
    torch.testing.assert_close(found, truth, **near)


@pytest.mark.parametrize("method", ON_RECTIFIED)
def test_on_rectified_terms(method):
    found = layerlens.saliency(Rectified(), WIDE, target=0, method=method).tensor
    torch.testing.assert_close(found, ON_RECTIFIED[method])


def test_xrai_takes_regions_by_the_mean_of_what_they_add():
    """Kapishnikov et al. 2019, algorithm 1, by loops: the region that adds the most per new pixel comes next."""
    torch.manual_seed(0)
    image, weight = torch.rand(1, 3, 16, 16), torch.randn(3, 16, 16)

    class Weighed(nn.Module):
        def forward(self, x):
            return (x * weight).sum(dim=(1, 2, 3)).unsqueeze(1)

    found = layerlens.saliency(Weighed(), image, target=0, method="xrai", base="input_x_gradient", scales=[4, 9])
    pixels = (image[0] * weight).sum(dim=0).double()
    regions = [set(map(tuple, mask.nonzero().tolist())) for mask in inner("_regions")(image[0], [4, 9])]
    smallest, left, expected = max(1.0, inner("SMALLEST") * 256), set(range(len(regions))), torch.zeros(16, 16).double()
    new = {(i, j) for i in range(16) for j in range(16)}
    while able := [k for k in sorted(left) if len(regions[k] & new) >= smallest]:
        gains = {k: sum(float(pixels[place]) for place in regions[k] & new) / len(regions[k] & new) for k in able}
        best = max(able, key=gains.__getitem__)
        for place in regions[best] & new:
            expected[place] = gains[best]
        new -= regions[best]
        left.remove(best)
    for place in new:
        expected[place] = sum(float(pixels[one]) for one in new) / len(new)
    torch.testing.assert_close(found.tensor[0].double(), expected, rtol=1e-4, atol=1e-5)


def inner(name):
    """What is inside of the file of xrai, whose function has its name."""
    import importlib

    assert callable(xrai_module)
    return getattr(importlib.import_module("layerlens.analyzers.saliency.path.xrai"), name)


def test_every_method_has_a_truth():
    told = {*ON_LINEAR, *ON_RECTIFIED, *ELSEWHERE}
    assert told == set(known_methods()) == set(layerlens.saliency.methods())
    for method, where in ELSEWHERE.items():
        file, name = where.split("::")
        assert f"def {name}(" in (HERE / file).read_text(), method
