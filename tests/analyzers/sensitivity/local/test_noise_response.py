"""Noise responses against closed forms."""

import pytest
import torch
from torch import nn

from layerlens import errors
from layerlens.analyzers.sensitivity import methods, noise_response, sensitivity
from tests.cases import CASES, normal


class Head(nn.Module):
    """h = a(x), y = w . h."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Linear(4, 50), nn.Linear(50, 1, bias=False)

    def forward(self, x):
        return self.head(self.a(x))


def test_a_linear_head_answers_with_the_norm_of_its_weights():
    torch.manual_seed(0)
    net, x = Head().double(), normal(1, 4).double()
    level, draws = 0.3, 4000
    profile = noise_response(net, x, "a", levels=(level,), draws=draws)
    net.requires_grad_(False)
    h = net.a(x)
    spread = level * h.std(unbiased=False) * net.head.weight.norm()  # y' - y ~ N(0, spread^2)
    expected = spread * (2 / torch.pi) ** 0.5 / net(x).abs().squeeze()  # the mean of its magnitude, over |y|
    assert float(abs(profile.values[0, 0] - expected)) < 4 * float(profile.error[0, 0])
    assert float(profile.error[0, 0]) < 0.03 * float(profile.values[0, 0])


def test_divergence_follows_its_quadratic_form_for_small_noise():
    """KL(p || softmax(z + d)) = d' (diag p - p p') d / 2 to second order."""
    torch.manual_seed(1)
    net, x = nn.Linear(3, 4).double().requires_grad_(False), normal(1, 3).double()
    level, draws = 0.01, 3000
    profile = noise_response(nn.Sequential(net), x, "0", levels=(level,), draws=draws, metric="kl")
    z = net(x)[0]
    p = z.softmax(0)
    fisher = torch.diag(p) - torch.outer(p, p)
    expected = (level * z.std(unbiased=False)) ** 2 * fisher.trace() / 2
    assert float(abs(profile.values[0, 0] - expected)) < 4 * float(profile.error[0, 0]) + 1e-3 * float(expected)


@pytest.mark.filterwarnings("ignore:.*is constant across a sample")  # random weights: a ReLU of hf_resnet is dead
def test_no_noise_is_no_answer(case):
    pairs = (lambda model, **x: model(**x).logits_per_image.diagonal()) if case.name == "hf_clip" else None
    profile = noise_response(case.build(), case.example(), forward=pairs, levels=(0.0, 0.5), draws=2)
    assert float(profile.values[:, 0].abs().max()) == 0
    assert float(profile.values[:, 1].max()) > 0
    assert profile.series == ("noise 0 std", "noise 0.5 std")


def test_a_dead_layer_gets_no_answer_and_the_layer_before_an_in_place_relu_does():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.dead, self.out = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.out(self.relu(self.used(x)) + 0 * self.dead(x))

    profile = noise_response(Dead(), normal(2, 3), levels=(1.0,))
    values = dict(zip(profile.layers, profile.values[:, 0].tolist(), strict=True))
    assert values["dead"] == 0
    assert values["used"] > 0 and values["relu"] > 0


def test_a_batch_is_the_mean_of_its_samples():
    for name in ("cnn", "lstm"):
        model, x = CASES[name].build().double(), CASES[name].example().double()
        together = noise_response(model, x, levels=(0.5,), draws=3)
        alone = [noise_response(model, x[row : row + 1], levels=(0.5,), draws=3) for row in range(2)]
        torch.testing.assert_close(together.values, torch.stack([profile.values for profile in alone]).mean(0))


def test_metrics_fit_the_output():
    mlp, gan = CASES["mlp"], CASES["gan"]
    assert noise_response(mlp.build(), mlp.example(), draws=2).settings["metric"] == "kl"
    assert noise_response(gan.build(), gan.example(), draws=2).settings["metric"] == "relative_change"
    flips = noise_response(mlp.build(), mlp.example(), metric="flip", levels=(100.0,), draws=20)
    assert 0 < float(flips.values.max()) <= 1
    with pytest.raises(errors.OptionError, match=r"metric 'kl' needs an output \(batch, classes\)"):
        noise_response(gan.build(), gan.example(), metric="kl")
    with pytest.raises(errors.OptionError, match="levels must be numbers of at least 0"):
        noise_response(mlp.build(), mlp.example(), levels=(-1,))


def test_one_door_knows_the_methods_and_their_options():
    mlp = CASES["mlp"]
    assert {"jacobian", "noise_response"} <= set(methods())
    assert methods()["noise_response"][0] == "matters_to_output"
    with pytest.raises(errors.OptionError, match=r"'jacobian' answers 'responds_to_input', not 'weights'"):
        sensitivity(mlp.build(), mlp.example(), question="weights", method="jacobian")
    with pytest.raises(errors.OptionError, match=r"unknown question 'wieghts'\. Closest: weights"):
        sensitivity(mlp.build(), mlp.example(), question="wieghts")
    with pytest.raises(errors.OptionError, match=r"unknown sensitivity method 'jacobi'\. Closest: jacobian"):
        sensitivity(mlp.build(), mlp.example(), method="jacobi")
    with pytest.raises(
        errors.OptionError, match=r"'jacobian' has no option 'levels'\. Closest: null. Known: relative, draws"
    ):
        sensitivity(mlp.build(), mlp.example(), levels=3)


def test_the_score_of_a_linear_head_varies_as_its_weights_say():
    """y = w . h: Var(y' - y) = s^2 ||w||^2, so E |y' - y| = s ||w|| sqrt(2 / pi); no noise is no change."""
    torch.manual_seed(2)
    net, x = Head().double(), normal(1, 4).double()
    levels = (0.0, 0.2, 0.8)
    profile = noise_response(net, x, "a", levels=levels, draws=4000, target=0)
    net.requires_grad_(False)
    for place, level in enumerate(levels):
        spread = level * net.a(x).std(unbiased=False) * net.head.weight.norm()
        expected = float(spread * (2 / torch.pi) ** 0.5)
        assert abs(float(profile.values[0, place]) - expected) <= 4 * float(profile.error[0, place])
    assert float(profile.values[0, 0]) == float(profile.error[0, 0]) == 0
    assert float(profile.error[0, 2]) < 0.03 * float(profile.values[0, 2])


def test_the_null_is_the_model_with_shuffled_weights_and_the_result_explains_itself():
    case = CASES["cnn"]
    model, x = case.build(), case.example()
    bits = [parameter.clone() for parameter in model.parameters()]
    profile = noise_response(model, x, levels=(0.0, 1.0), draws=2, null=True)
    assert profile.null.shape == profile.values.shape
    assert not torch.allclose(profile.null, profile.values)
    assert profile.null[:, 0].tolist() == [0.0] * len(profile)
    assert all(torch.equal(a, b) for a, b in zip(bits, model.parameters(), strict=True))
    assert noise_response(model, x, draws=2).null is None
    assert len(profile.explanation) == 2 and all(profile.explanation)
    assert "depends on it" in profile.explain() and "does not say" in profile.explain()
