"""A map of pictures that is corrected by gradients where its first places are kept or replaced."""

import pytest
import torch
from torch import nn

from layerlens import saliency
from layerlens.analyzers.common.features.baselines import blur
from layerlens.analyzers.saliency.corrected import STEPS, corrected
from layerlens.errors import InputError
from tests.cases import normal


def network(outputs=3, last=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = [nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 6 * 7, outputs)]
    return nn.Sequential(*parts, *([] if last is None else [last])).double().eval()


def ranked(values):
    """By comparing every place with every other."""
    flat = values.flatten()
    below, same = ((flat[:, None] > flat).sum(dim=1), (flat[:, None] == flat).sum(dim=1) - 1)
    return ((below.double() + same.double() / 2) / (len(flat) - 1)).reshape(values.shape)


def by_hand(score, x, values, steps):
    """Of one picture, with the gradient by central differences."""

    def slope(at):
        found = torch.zeros_like(at)
        for place in range(at.numel()):
            step = torch.zeros(at.numel(), dtype=at.dtype)
            step[place] = 1e-5
            step = step.reshape(at.shape)
            found.flatten()[place] = (score(at + step) - score(at - step)) / 2e-5
        return found

    total = 3 * ranked(values.sum(dim=0))
    for share, name in STEPS[:steps]:
        fill = blur(x[None], (2, 3))[0] if name == "blur" else x.mean(dim=(1, 2), keepdim=True).expand_as(x)
        first = ranked(total) >= 1 - share
        kept, removed = torch.where(first, x, fill), torch.where(first, fill, x)
        total = total + ranked(((slope(kept) + slope(removed)) * (x - fill)).sum(dim=0))
    return total / (3 + steps)


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_it_is_what_differences_of_the_probability_say(steps):
    model, x = network(), normal(2, 2, 8, 9).double()
    before = saliency(model, x, target=1, method="relevance")
    given = x.clone()
    found = corrected(model, x, before, steps, target=1)
    assert torch.equal(x, given) and found.settings["of"] == "probability"
    for row in range(2):  # each as if it were alone
        with torch.no_grad():
            expected = by_hand(lambda one: model(one[None]).softmax(dim=1)[0, 1], x[row], before.tensor[row], steps)
        torch.testing.assert_close(found.tensor[row].double(), expected, rtol=0, atol=1e-6)


def test_a_score_that_is_not_of_a_class_is_taken_as_it_is():
    model, x = network(1), normal(1, 2, 8, 9).double()
    before = saliency(model, x, target=0, method="gradient")
    found = corrected(model, x, before, 3, target=0)
    with torch.no_grad():
        expected = by_hand(lambda one: model(one[None])[0, 0], x[0], before.tensor[0], 3)
    torch.testing.assert_close(found.tensor[0].double(), expected, rtol=0, atol=1e-6)
    assert found.settings["of"] == "score"


class Root(nn.Module):
    """With an infinite slope where all places are equal."""

    def forward(self, x):
        return ((x - x.flatten(1).amax(dim=1)[:, None, None, None]).flatten(1).square().sum(dim=1, keepdim=True)).sqrt()


def test_a_gradient_that_is_not_finite_is_refused():
    model, x = Root(), torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    x[0, 0, 0, 0] = 1.0
    before = saliency(model, x, target=0, method="gradient")
    x[:] = 0.0
    with pytest.raises(InputError, match=r"gradient is not finite.*budget below 9"):
        corrected(model, x, before, 3, target=0)
