"""How many samples run at once: from bytes alone, so that the same call takes the same batches every time."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layerlens.analyzers.common import batch_size
from layerlens.analyzers.common.batch_size import first_score
from layerlens.analyzers.common.scorer import Scorer
from layerlens.analyzers.saliency import feature_ablation, integrated_gradients, occlusion, saliency, smooth_grad
from layerlens.analyzers.saliency.perturbation.leave_one_out import leave_one_out
from layerlens.model.borrowed import borrowed, freeze
from tests.cases import CASES, normal

MIB = 2**20


class Enlarged(nn.Module):
    """Layers of one small map, and of one that a function enlarges before the second layer reads it."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale
        self.first, self.second = nn.Conv2d(1, 1, 1), nn.AvgPool2d(4 * scale)

    def forward(self, x):
        return self.second(F.interpolate(self.first(x), scale_factor=self.scale)).flatten(1)


class Logits(nn.Module):
    """Sixteen layers of 256 KiB and one of 1 MiB at the end, as the logits of a text."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Identity() for _ in range(16))
        self.head = nn.Upsample(scale_factor=4)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, None])[:, 0, :4]


def batch(model, x, **options):
    with borrowed(model):
        freeze(model)
        scorer = Scorer(model, x, 0)
        return first_score(scorer, scorer.start(), "auto", **options)


def test_forward_passes_are_bounded_by_what_layers_take_and_return():
    x = torch.rand(1, 1, 64, 64)  # 16 KiB
    assert batch(Enlarged(1), x, gradient=False)[1] > 64  # all of it is small
    assert batch(Enlarged(32), x, gradient=False)[1] == 1  # the second layer takes 16 MiB
    assert batch(Enlarged(16), x, gradient=False)[1] == 4  # 4 MiB
    assert batch(Enlarged(16), x.expand(3, -1, -1, -1), gradient=False)[1] == 4
    assert batch(Enlarged(16), x.expand(40, -1, -1, -1), gradient=False)[1] == 4  # measured on one sample
    model = Enlarged(16)
    score = batch(model, x.expand(40, -1, -1, -1), gradient=False)[0]
    torch.testing.assert_close(score, batch(model, x)[0].detach().expand(40))


def test_a_round_number_is_taken_and_one_large_activation_is_no_matter(monkeypatch):
    monkeypatch.setattr(batch_size, "SMALL", 0)
    x = torch.rand(1, 2**16)  # 256 KiB
    assert batch(Logits(), x, gradient=False)[1] == 16  # the last layer is a fifth of all bytes
    wide = Logits()
    wide.layers.extend(nn.Identity() for _ in range(32))  # now it is less than an eighth
    assert batch(wide, x, gradient=False)[1] == 32
    monkeypatch.setattr(batch_size, "PASSING", 3.9 * MIB)
    assert batch(wide, x, gradient=False)[1] == 12
    monkeypatch.setattr(batch_size, "MEMORY", 20 * MIB)
    assert batch(wide, x, gradient=False)[1] == 5  # four times the largest activation each
    monkeypatch.setattr(batch_size, "MEMORY", MIB)
    assert batch(wide, x, gradient=False)[1] == 1


@pytest.mark.parametrize(
    ("method", "case"),
    [(feature_ablation, "cnn"), (occlusion, "cnn"), (integrated_gradients, "cnn"), (smooth_grad, "cnn")],
)
def test_an_automatic_batch_gives_what_single_samples_give_and_the_same_bits_again(method, case):
    model, x = CASES[case].build().double(), CASES[case].example().double()
    found, again = method(model, x, target=1), method(model, x, target=1)
    assert torch.equal(found.tensor, again.tensor) and found.settings == again.settings
    assert found.settings["batch_size"] > 1
    torch.testing.assert_close(found.tensor, method(model, x, target=1, batch_size=1).tensor)


def test_a_model_that_only_runs_forward_is_measured():
    class Rounded(nn.Module):
        def forward(self, x):
            x.detach_().round_()  # which no graph could pass
            return x.flatten(1).sum(dim=1, keepdim=True)

    x = normal(1, 3, 8, 8) * 3
    found = saliency(Rounded(), x, method="feature_ablation", target=0, features="values")
    torch.testing.assert_close(found.tensor, x.round())


def test_texts_are_measured_by_forward_passes_too():
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2)).double()
    ids = torch.tensor([[3, 1, 4]])
    found = leave_one_out(net, ids, target=0, fill="zero")
    assert found.settings["batch_size"] > 1
    weight = net[2].weight[0].reshape(3, 4)
    torch.testing.assert_close(found.tensor[0].double(), (net[0](ids)[0] * weight).sum(dim=1).detach())
