"""Ctrl-C in the middle of any method, or of what is built on them: the model is given back as it was, at once."""

import warnings

import pytest
import torch
from torch import nn

import layerlens
from layerlens.analyzers.saliency.saliency import known_methods
from tests.cases import normal
from tests.snapshot import Snapshot

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


class Stopped(nn.Module):
    """An image, or a text; after some runs the user presses Ctrl-C, in the middle of the forward pass."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.word, self.conv, self.norm = nn.Embedding(9, 4), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.relu, self.head = nn.ReLU(True), nn.Linear(4, 3)
        self.__dict__["left"] = 10**9

    def forward(self, x):
        inner = self.word(x).mT.unsqueeze(2) if x.dtype == torch.int64 else self.conv(x)
        means = self.relu(self.norm(inner)).mean(dim=(2, 3))
        self.__dict__["left"] -= 1
        if self.__dict__["left"] < 0:
            raise KeyboardInterrupt
        return self.head(means)


def messy():
    """As users hand a model in: half in train mode, part frozen, gradients lying around."""
    model = Stopped()
    for place, module in enumerate(model.modules()):
        module.training = place % 2 == 0
    for place, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(place % 3 != 0)
        if place % 2:
            parameter.grad = torch.full_like(parameter, 0.5)
    return model


def interrupted(call, x, hooks_of, most=4):
    """Stop the call in its first run, its second ..., until it ends."""
    stopped = 0
    for left in range(most):
        model = messy()
        model.__dict__["left"] = left
        before, random = Snapshot(model, x), torch.get_rng_state()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                call(model)
            except KeyboardInterrupt:
                stopped += 1
        before.check()
        assert hooks_of(model) == 0 and torch.equal(random, torch.get_rng_state())
    assert stopped, "it ran to its end in one pass"


@pytest.mark.parametrize("method", known_methods().values(), ids=lambda method: method.name)
def test_every_method(method, hooks_of):
    x = IDS if method.needs == "token ids" else normal(2, 3, 8, 8)
    where = {"where": "conv"} if "a layer (where=)" in method.needs else {}
    where |= {"unit": 0} if "unit=" in method.needs else {}
    interrupted(lambda model: layerlens.saliency(model, x, target=1, method=method.name, **where), x, hooks_of)


X = normal(6, 3, 8, 8)
BUILT = {
    "evaluate": lambda model: layerlens.evaluate(model, X, ["gradient"], target=1),
    "infidelity": lambda model: layerlens.evaluate(model, X, ["gradient"], target=1, metrics=["infidelity"]),
    "randomization": lambda model: layerlens.cascading_randomization(model, X, "gradient", target=1),
    "compare_groups": lambda model: layerlens.compare_groups(model, X, [0, 1] * 3, target=1, permutations=3),
    "explain_errors": lambda model: layerlens.explain_errors(model, X, [0, 1] * 3, permutations=3),
    "top_inputs": lambda model: layerlens.top_inputs(model, X, "conv", target=1, units=0, count=2),
    "feature_visualization": lambda model: layerlens.feature_visualization(model, 1, (3, 8, 8), steps=3),
}


@pytest.mark.parametrize("name", BUILT)
def test_what_is_built_on_them(name, hooks_of):
    interrupted(BUILT[name], X, hooks_of)
