import math
import warnings

import pytest
import torch
from torch import nn

from layerlens.analyzers.saliency import integrated_gradients, saliency
from layerlens.demo.embedded import load_digit_net, sample_pictures
from layerlens.errors import InputError, OptionError, UnknownOption
from tests.cases import CASES, normal

TYPES = {"smooth_grad": "smoothgrad", "smooth_grad_squared": "smoothgrad_sq", "var_grad": "vargrad"}


class TwoInputs(nn.Module):
    def forward(self, a, b, scale=1.0):
        return scale * torch.stack([(a**3).sum(dim=1) * b.sum(dim=1), (a * b).sum(dim=1)], dim=1)


@pytest.mark.parametrize("name", TYPES)
def test_equals_captums_noise_tunnel_of_integrated_gradients(name):
    from captum.attr import IntegratedGradients, NoiseTunnel

    model, x = CASES["cnn"].build(), CASES["cnn"].example()[:1]
    torch.manual_seed(0)  # torch draws 192 normal numbers per copy alike in either order
    expected = NoiseTunnel(IntegratedGradients(model)).attribute(
        x, nt_type=TYPES[name], nt_samples=6, nt_samples_batch_size=1, stdevs=0.3, target=2, n_steps=20
    )
    found = saliency(
        model, x, target=2, method=name, of="integrated_gradients", of_options={"steps": 20, "max_steps": 20},
        stdevs=0.3, samples=6,
    )  # fmt: skip
    torch.testing.assert_close(found.tensor, expected, rtol=1e-4, atol=1e-7)
    assert found.units == ("score" if name == "smooth_grad" else "squared score")
    assert found.signed == (name == "smooth_grad")
    assert (found.settings["of"], found.settings["integrated_gradients: steps"]) == ("integrated_gradients", 20)


def copies_of(x, count, scale, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [x + scale * torch.randn(x.shape[1:], generator=generator).to(x) for _ in range(count)]


@pytest.mark.parametrize(
    "of, options", [("deep_lift", {}), ("feature_ablation", {}), ("relevance", {"rules": "epsilon"}), ("grad_cam", {})]
)
def test_is_the_statistic_of_the_maps_of_each_copy(of, options):
    model, x = CASES["cnn"].build().double(), CASES["cnn"].example().double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of maps that are zero
        each = torch.stack(
            [saliency(model, one, target=[1, 2], method=of, **options).tensor for one in copies_of(x, 4, 0.2)]
        )
        state = torch.get_rng_state()
        for name, expected in (
            ("smooth_grad", each.mean(dim=0)),
            ("smooth_grad_squared", each.square().mean(dim=0)),
            ("var_grad", each.var(dim=0, unbiased=False)),
        ):
            found = saliency(
                model, x, target=[1, 2], method=name, of=of, of_options=options, stdevs=0.2, samples=4, batch_size=4
            )
            torch.testing.assert_close(found.tensor, expected)
            if name != "var_grad":
                spread = (each if name == "smooth_grad" else each.square()).std(dim=0) / 2
                torch.testing.assert_close(found.standard_error, spread)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_class_is_that_of_the_input_and_not_of_its_copies():
    net = nn.Linear(2, 2, bias=False)
    net.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    found = saliency(net, torch.tensor([[1.0, 0.9]]), method="smooth_grad", of="input_x_gradient", stdevs=5.0)
    assert float(found.tensor[0, 1]) == 0 and found.target.startswith("class 0")


def test_noise_by_input_in_its_units_and_options_with_a_row_for_each_sample():
    a, b = normal(2, 3).double(), normal(2, 3, seed=1).double()
    base = {"a": normal(2, 3, seed=2).double(), "b": 0.0}
    options = {"baseline": base, "tolerance": 1.0}
    for stdevs in ({"a": 0.1}, (0.1, 0.0)):
        found = saliency(
            TwoInputs(), {"a": a, "b": b}, target=0, method="smooth_grad", of="integrated_gradients",
            of_options=options, stdevs=stdevs, samples=3, batch_size=2,
        )  # fmt: skip
        generator, expected = torch.Generator().manual_seed(0), 0
        for _ in range(3):
            noisy = a + 0.1 * torch.randn(3, generator=generator).double()
            torch.randn(3, generator=generator)
            one = integrated_gradients(TwoInputs(), {"a": noisy, "b": b}, target=0, **options)
            expected = expected + one.values["a"] / 3
        torch.testing.assert_close(found.values["a"], expected)


def test_baselines_are_drawn_one_for_each_copy():
    net = nn.Linear(3, 1, bias=False)
    x, references = normal(2, 3), torch.stack([torch.zeros(3), torch.ones(3)])
    found = saliency(
        net, x, method="smooth_grad", of="integrated_gradients", baselines=references, stdevs=0.0, samples=400
    )
    spans = x - found.tensor / net.weight.detach()  # the mean of the baselines that were drawn
    assert float((spans - 0.5).abs().max()) < 0.1
    assert float(spans.std()) < 1e-5
    assert found.settings["baselines"] == "drawn from 2"
    with pytest.raises(OptionError, match="'gradient' has none"):
        saliency(net, x, method="smooth_grad", baselines=references)


def test_at_a_layer_the_noise_is_in_the_input():
    model, x = CASES["cnn"].build().double(), CASES["cnn"].example().double()
    found = saliency(
        model, x, target=1, method="smooth_grad", of="input_x_gradient", where="pool", stdevs=0.3, samples=2
    )
    each = [saliency(model, one, target=1, method="input_x_gradient", where="pool") for one in copies_of(x, 2, 0.3)]
    torch.testing.assert_close(found.tensor, (each[0].tensor + each[1].tensor) / 2)
    assert found.settings["where"] == "pool"


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"of": "auto"}, OptionError, "name the method"),
        ({"of": "integrated_gradient"}, OptionError, "integrated_gradients"),
        ({"of": "integrated_gradients", "of_options": {"step": 3}}, UnknownOption, "Closest: steps"),
        ({"of": "integrated_gradients", "of_options": {"target": 3}}, UnknownOption, "no option 'target'"),
        ({"stdevs": -1.0}, OptionError, "0 or above"),
        ({"stdevs": (1.0, 2.0)}, OptionError, "holds 2 numbers"),
        ({"stdevs": 1.0, "noise": 0.3}, OptionError, "give one"),
        ({"of": "deep_shap", "baselines": torch.zeros(2, 3)}, OptionError, "has none"),
        ({"of": "xrai", "where": "0"}, OptionError, "input only"),
    ],
)
def test_bad_options_are_errors(options, error, text):
    with pytest.raises(error, match=text):
        saliency(nn.Linear(3, 2), normal(2, 3), target=0, method="smooth_grad", **options)


def test_token_ids_get_no_noise_and_warnings_are_given_once():
    case = CASES["encoder"]
    with pytest.raises(InputError, match="token ids"):
        saliency(case.build(), case.example(), method="smooth_grad", of="integrated_gradients")
    with pytest.warns(UserWarning) as caught:
        saliency(
            CASES["cnn"].build(), CASES["cnn"].example(), target=1, method="smooth_grad", of="integrated_gradients",
            of_options={"tolerance": 1e-12, "max_steps": 50}, samples=5,
        )  # fmt: skip
    assert len(caught) == 1 and "smooth_grad of integrated_gradients, on noisy copies" in str(caught[0].message)


@pytest.mark.slow
def test_trained_digits_agree_with_captum_within_the_standard_error():
    from captum.attr import InputXGradient, IntegratedGradients, NoiseTunnel

    images, labels, _ = sample_pictures()
    net, x, target = load_digit_net(), images[:2], labels[:2].tolist()
    torch.manual_seed(0)
    expected = NoiseTunnel(InputXGradient(net)).attribute(
        x.clone().requires_grad_(), nt_samples=60, nt_samples_batch_size=10, stdevs=0.1, target=target
    )
    found = saliency(net, x, target=target, method="smooth_grad", of="input_x_gradient", stdevs=0.1, samples=60)
    away = (found.tensor - expected) / found.standard_error.clamp_min(1e-12)
    assert 1 < float(away.std()) < 2  # sqrt(2) for two independent means; places vary together
    assert float((away.abs() > 4).double().mean()) < 0.01

    starts = images[2:6]
    each = [IntegratedGradients(net).attribute(x, start[None], target=target, n_steps=10) for start in starts]
    found = saliency(
        net, x, target=target, method="smooth_grad", of="integrated_gradients", stdevs=0.0, samples=60,
        of_options={"steps": 10, "tolerance": math.inf}, baselines=starts,
    )  # fmt: skip
    away = (found.tensor - torch.stack(each).mean(dim=0)) / found.standard_error.clamp_min(1e-12)
    assert float(away.std()) < 2
