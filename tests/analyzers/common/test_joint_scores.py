"""Gradients of a batch whose samples share statistics, against those of each sample's own score."""

import pytest
import torch
from torch import nn

from layerlens import saliency
from tests.cases import normal


def mixing():
    """A net whose samples share the statistics of a normalization."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2)).double().eval()


@pytest.mark.parametrize("method", ["gradient", "input_x_gradient", "guided_backprop", "grad_cam"])
def test_a_gradient_of_one_pass_holds_no_score_of_another_sample(method):
    model, x = mixing(), normal(3, 1, 8, 8).double().requires_grad_()
    hidden = []
    keep = model[0].register_forward_hook(lambda *args: hidden.append(args[2]))
    rectify = model[2].register_full_backward_hook(lambda _, given, outer: (given[0].clamp(min=0),))
    if method != "guided_backprop":
        rectify.remove()
    truth = []
    for row in range(3):
        score = model(x)[row, 1]
        if method == "grad_cam":
            (slope,) = torch.autograd.grad(score, hidden[-1])
            truth.append((slope[row].mean(dim=(1, 2), keepdim=True) * hidden[-1][row]).sum(0).relu())
        else:
            slope = torch.autograd.grad(score, x)[0][row]
            truth.append(slope * x[row] if method == "input_x_gradient" else slope)
    keep.remove()
    rectify.remove()
    options = {"layer": "0"} if method == "grad_cam" else {}
    with pytest.warns(UserWarning, match="samples influence each other") as caught:
        found = saliency(model, x.detach(), target=1, method=method, **options)
    assert len([one for one in caught if "influence each other" in str(one.message)]) == 1
    torch.testing.assert_close(found.tensor, torch.stack(truth).detach().view_as(found.tensor), rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings(
    "ignore:deep_lift. the values of sample", "ignore:.*deep_shap.*", "ignore:.*relevance.*ledger"
)
@pytest.mark.parametrize("method", ["relevance", "deep_lift", "deep_shap"])
def test_methods_that_explain_the_sum_of_the_scores_say_so(method):
    model, x = mixing(), normal(3, 1, 8, 8).double()
    with pytest.warns(UserWarning, match="holds what it does to the scores of the other samples"):
        saliency(model, x, target=1, method=method)


def test_samples_that_are_independent_take_one_pass_without_a_warning():
    model, x = mixing(), normal(3, 1, 8, 8).double()
    model[1] = nn.BatchNorm2d(4).double().eval()
    for method in ("gradient", "guided_backprop", "grad_cam", "relevance", "deep_lift"):
        found = saliency(model, x, target=1, method=method, **({"layer": "0"} if method == "grad_cam" else {}))
        assert "passes" not in found.settings
