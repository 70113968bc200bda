"""Gradients of a batch whose samples share statistics, against those of each sample's own score."""

import pytest
import torch
from torch import nn

from layerlens import saliency
from layerlens.errors import InputError
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


class Towers(nn.Module):
    """A number for each pair of a picture and a text, as in CLIP."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.see, self.read = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Tanh()), nn.Embedding(9, 4)

    def forward(self, picture, words):
        return {"per_picture": self.see(picture) @ self.read(words).mean(dim=1).tanh().T}


PAIRS = {"picture": normal(3, 3, 2, 2), "words": torch.tensor([[1, 2], [3, 4], [5, 8]])}
METHODS_OF_PAIRS = ("input_x_gradient", "relevance", "deep_lift", "leave_one_out", "rise", "shapley_sampling")


@pytest.mark.filterwarnings("ignore:deep_lift. the values of sample")
@pytest.mark.parametrize("method", METHODS_OF_PAIRS)
def test_each_pair_by_itself_and_a_warning_where_others_take_part(method):
    net = Towers()
    own = saliency(net, PAIRS, target=lambda output: output["per_picture"].diagonal(), method=method)
    for row in range(3):
        one = {name: tensor[row : row + 1] for name, tensor in PAIRS.items()}
        alone = saliency(net, one, target=lambda output: output["per_picture"].diagonal(), method=method)
        for name, values in alone.values.items():
            torch.testing.assert_close(own.values[name][row : row + 1], values, rtol=1e-4, atol=1e-5)
    said = r"output\['per_picture'\] has a number for each pair.*lambda output: output\['per_picture'\]\.diagonal\(\)"
    for rows in (3, 1) if method in ("leave_one_out", "rise", "shapley_sampling") else (3,):  # copies are run together
        some = {name: tensor[:rows] for name, tensor in PAIRS.items()}
        with pytest.warns(UserWarning, match=said):
            found = saliency(net, some, target=lambda output: output["per_picture"][:, 0], method=method)
        torch.testing.assert_close(found.values["picture"][0], own.values["picture"][0], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:deep_lift. the values of sample")
def test_targets_by_class_of_pairs_are_each_looked_at():
    def forward(model, picture, words):
        return model(picture, words)["per_picture"]

    net, diagonal = Towers(), [0, 1, 2]
    for method in ("relevance", "deep_lift"):
        saliency(net, PAIRS, target=diagonal, method=method, forward=forward)
        with pytest.warns(UserWarning, match=r"has a number for each pair.*output\.diagonal\(\)"):
            saliency(net, PAIRS, target=0, method=method, forward=forward)


def test_one_picture_with_several_texts():
    picture, words = PAIRS["picture"][:1], PAIRS["words"]
    with pytest.raises(InputError, match=r"lambda model, picture: model\(picture=picture, words=words\)"):
        saliency(Towers(), {"picture": picture, "words": words}, target=0)
    found = saliency(
        Towers(), picture, target=2, method="gradient", forward=lambda net, x: net(x, words)["per_picture"]
    )
    assert found.tensor.shape == picture.shape
