"""Models that return one value for a batch: a Python number, a tensor () or (1,)."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from layerlens.analyzers.saliency import saliency
from layerlens.errors import InputError, TargetError
from tests.cases import normal

FORMS = {
    "float": lambda value: float(value.detach()),
    "int": lambda value: round(float(1000 * value.detach())),
    "numpy": lambda value: np.float32(float(value.detach())),
    "()": lambda value: value,
    "(1,)": lambda value: value.reshape(1),
    "whole": lambda value: (1000 * value).round().long(),
}
PERTURBATION = ("feature_ablation", "occlusion", "shapley_sampling", "kernel_shap", "lime", "rise", "sobol")
GRADIENT = (
    "gradient", "input_x_gradient", "integrated_gradients", "gradient_shap", "smooth_grad", "guided_backprop",
    "blur_ig",
)  # fmt: skip


class Each(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(3 * 16, 1)

    def forward(self, x):
        return self.head(self.conv(x).relu().flatten(1)).tanh()


class Sum(Each):
    form = "float"

    def forward(self, x):
        return FORMS[self.form](super().forward(x).sum())


def build(form):
    torch.manual_seed(0)
    each, one = Each(), Sum()
    one.load_state_dict(each.state_dict())
    one.form = form
    return each, one


def close(one, each, form):
    for found, expected in zip(one, each, strict=True):  # rounded scores: a thousandth each
        whole = form in ("int", "whole")
        torch.testing.assert_close(
            found * 1e-3 if whole else found, expected, rtol=1e-3, atol=5e-3 if whole else 1e-5, check_dtype=False
        )


@pytest.mark.parametrize("form", FORMS)
def test_the_value_is_the_score_of_one_sample_and_of_each_of_several(form):
    each, one = build(form)
    for count in (1, 2):
        x = normal(count, 1, 4, 4)
        for method in ("feature_ablation", "kernel_shap") if form != "()" else PERTURBATION:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = saliency(one, x, method=method)
            said = [str(warning.message) for warning in caught]
            assert len(said) == (count > 1 or form == "(1,)"), said  # (1,) of one sample is found to be one value later
            assert count == 1 or f"returns one value for the batch of {count}" in said[0]
            expected = saliency(each, x, method=method)
            if method == "sobol":
                torch.testing.assert_close(found.tensor.float(), expected.tensor, rtol=1e-3, atol=1e-5)
            else:
                close(found.tensor, expected.tensor, form)


@pytest.mark.filterwarnings("ignore:Sum returns", "ignore:samples influence each other", "ignore:.*steps the values")
@pytest.mark.parametrize("form", ["()", "(1,)"])
def test_gradients_of_one_value_are_those_of_each_sample(form):
    each, one = build(form)
    for count in (1, 2):
        x = normal(count, 1, 4, 4)
        for method in GRADIENT:
            close(saliency(one, x, method=method).tensor, saliency(each, x, method=method).tensor, form)
        at_layer = {"method": "layer_conductance", "where": "conv"}
        close(saliency(one, x, **at_layer).tensor, saliency(each, x, **at_layer).tensor, form)
    assert saliency(one, x).method == "integrated_gradients"  # method="auto"


@pytest.mark.filterwarnings("ignore:Sum returns one value", "ignore:samples influence each other")
def test_methods_that_explain_all_scores_at_once_refuse_one_value_for_several_samples():
    each, one = build("()")
    x = normal(2, 1, 4, 4)
    for method in ("relevance", "deep_lift", "deep_shap", "extremal_mask"):
        with pytest.raises(InputError, match="give one sample at a time"):
            saliency(one, x, method=method)
    for method in ("relevance", "deep_lift"):
        close(saliency(one, x[:1], method=method).tensor, saliency(each, x[:1], method=method).tensor, "()")


def test_one_value_of_samples_that_interact_is_that_of_captum():
    from captum.attr import FeatureAblation

    def product(x):  # of all samples
        return float(x.sum(dim=1).prod())

    class Whole(nn.Module):
        def forward(self, x):
            return product(x)

    x = normal(2, 3).double() + 1
    with pytest.warns(UserWarning, match="one value for the batch of 2"):
        found = saliency(Whole(), x, method="feature_ablation", baseline=0.0)
    for row in range(2):
        for column in range(3):
            changed = x.clone()
            changed[row, column] = 0
            assert float(found.tensor[row, column]) == pytest.approx(product(x) - product(changed))
    alone = FeatureAblation(Whole().forward).attribute(x[:1], perturbations_per_eval=1)
    torch.testing.assert_close(saliency(Whole(), x[:1], method="feature_ablation").tensor, alone.to(x))


def test_a_number_has_no_gradient_and_a_sample_without_its_batch_axis_is_still_refused():
    _, one = build("float")
    with pytest.raises(TargetError, match="no gradient flows"):
        saliency(one, normal(1, 1, 4, 4), method="gradient")
    assert saliency(one, normal(1, 1, 4, 4)).method == "shapley_sampling"
    with pytest.raises(InputError, match="one sample without it"):
        saliency(nn.Linear(3, 1), normal(3), method="feature_ablation")
