"""Every class of captum that computes the same, on a trained network: captum is the oracle."""

import copy

import pytest
import torch
from captum import attr, robust
from captum.attr._utils.lrp_rules import EpsilonRule
from torch import nn

import layerlens
from layerlens import Lens, input_of, neuron

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:.*Setting (forward|backward).*hooks",
        "ignore:Input Tensor 0 did not already",
        "ignore:.*relu=True keeps nothing",
    ),
]

UNIT = (2, 4, 3)
"""A neuron of the first ReLU."""


@pytest.fixture(scope="module")
def digits():
    """Pictures 8 x 8 with values from 0 to 1, and their labels."""
    found = pytest.importorskip("sklearn.datasets").load_digits()
    return torch.tensor(found.images[:, None] / 16), torch.tensor(found.target)


@pytest.fixture(scope="module")
def net(digits):
    """Reads nine of ten digits that it was not trained on."""
    pictures, labels = digits
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 32), nn.ReLU(),
        nn.Linear(32, 10),
    ).double()  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pictures[:1200]), labels[:1200]).backward()
        optimizer.step()
    model.zero_grad()
    assert float((model(pictures[1200:]).argmax(dim=1) == labels[1200:]).double().mean()) > 0.9
    return model.eval()


TARGET = [0, 1, 2]
QUARTERS = torch.arange(4).reshape(2, 2).repeat_interleave(4, 0).repeat_interleave(4, 1)[None]
FIXED = {"steps": 20, "max_steps": 20}


def to(net, x, method, **options):
    """The values of a method."""
    return Lens(net).saliency(x, target=TARGET, method=method, **options).tensor


def of_unit(net, x, method, **options):
    return Lens(net).saliency(x, target=neuron("1", UNIT), method=method, **options).tensor


ROWS = {
    "Saliency": (
        lambda net, x: attr.Saliency(net).attribute(x, target=TARGET, abs=False),
        lambda net, x: to(net, x, "gradient"),
    ),
    "InputXGradient": (
        lambda net, x: attr.InputXGradient(net).attribute(x, target=TARGET),
        lambda net, x: to(net, x, "input_x_gradient"),
    ),
    "IntegratedGradients": (
        lambda net, x: attr.IntegratedGradients(net).attribute(x, target=TARGET, n_steps=20),
        lambda net, x: to(net, x, "integrated_gradients", **FIXED),
    ),
    "IntegratedGradients, middle points, without the inputs": (
        lambda net, x: attr.IntegratedGradients(net, multiply_by_inputs=False).attribute(
            x, target=TARGET, n_steps=20, method="riemann_middle"
        ),
        lambda net, x: to(
            net, x, "integrated_gradients", multiply_by_inputs=False, quadrature="riemann_middle", **FIXED
        ),
    ),
    "DeepLift": (
        lambda net, x: attr.DeepLift(net).attribute(x, target=TARGET),
        lambda net, x: to(net, x, "deep_lift"),
    ),
    "DeepLiftShap": (
        lambda net, x: attr.DeepLiftShap(net).attribute(x, baselines=x.flip(0).flip(2), target=TARGET),
        lambda net, x: to(net, x, "deep_shap", baselines=x.flip(0).flip(2)),
    ),
    "GuidedBackprop": (
        lambda net, x: attr.GuidedBackprop(net).attribute(x, target=TARGET),
        lambda net, x: to(net, x, "guided_backprop"),
    ),
    "Deconvolution": (
        lambda net, x: attr.Deconvolution(net).attribute(x, target=TARGET),
        lambda net, x: to(net, x, "deconvnet"),
    ),
    "FeatureAblation": (
        lambda net, x: attr.FeatureAblation(net).attribute(x, target=TARGET, feature_mask=QUARTERS),
        lambda net, x: to(net, x, "feature_ablation", features=QUARTERS, baseline=0.0),
    ),
    "Occlusion": (
        lambda net, x: attr.Occlusion(net).attribute(x, (1, 3, 3), target=TARGET),
        lambda net, x: to(net, x, "occlusion", window=3, stride=1, baseline=0.0),
    ),
    "ShapleyValues": (
        lambda net, x: attr.ShapleyValues(net).attribute(x, target=TARGET, feature_mask=QUARTERS),
        lambda net, x: to(net, x, "kernel_shap", features=QUARTERS, samples=64, baseline=0.0),
    ),
    "LRP": (
        lambda net, x: attr.LRP(with_rules(net)).attribute(x, target=TARGET),
        lambda net, x: Lens(net).relevance(x, target=TARGET, rules="epsilon").tensor,
    ),
    "GuidedGradCam": (
        lambda net, x: attr.GuidedGradCam(net, net[0]).attribute(x, target=TARGET),
        lambda net, x: to(net, x, "guided_grad_cam", where="0"),
    ),
    "LayerActivation": (
        lambda net, x: attr.LayerActivation(net, net[4]).attribute(x),
        lambda net, x: layerlens.capture(net, x, "4")["4"],
    ),
    "LayerGradientXActivation": (
        lambda net, x: attr.LayerGradientXActivation(net, net[2]).attribute(x, target=TARGET),
        lambda net, x: to(net, x, "input_x_gradient", where="2"),
    ),
    "LayerGradientXActivation of the input of a layer": (
        lambda net, x: attr.LayerGradientXActivation(net, net[4]).attribute(
            x, target=TARGET, attribute_to_layer_input=True
        ),
        lambda net, x: to(net, x, "input_x_gradient", where=input_of("4")),
    ),
    "LayerIntegratedGradients": (
        lambda net, x: attr.LayerIntegratedGradients(net, net[2]).attribute(x, target=TARGET, n_steps=20),
        lambda net, x: to(net, x, "integrated_gradients", where="2", baseline=at_zero(net, x, "2"), **FIXED),
    ),
    "LayerConductance": (
        lambda net, x: attr.LayerConductance(net, net[2]).attribute(x, target=TARGET, n_steps=2000),
        lambda net, x: to(net, x, "layer_conductance", where="2", tolerance=1e-4, max_steps=4000),
    ),
    "LayerConductance, steps of captum": (
        lambda net, x: attr.LayerConductance(net, net[2]).attribute(
            x, target=TARGET, n_steps=20, method="riemann_trapezoid"
        ),
        lambda net, x: to(net, x, "layer_conductance", where="2", quadrature="riemann_left", **FIXED),
    ),
    "InternalInfluence": (
        lambda net, x: attr.InternalInfluence(net, net[2]).attribute(x, target=TARGET, n_steps=20),
        lambda net, x: to(net, x, "internal_influence", where="2", steps=20),
    ),
    "LayerDeepLift": (
        lambda net, x: attr.LayerDeepLift(net, net[2]).attribute(x, target=TARGET),
        lambda net, x: to(net, x, "deep_lift", where="2", baseline=at_zero(net, x, "2")),
    ),
    "LayerFeatureAblation": (
        lambda net, x: attr.LayerFeatureAblation(net, net[5]).attribute(x, target=TARGET),
        lambda net, x: to(net, x, "feature_ablation", where="5", baseline=0.0),
    ),
    "LayerGradCam": (
        lambda net, x: attr.LayerGradCam(net, net[0]).attribute(x, target=TARGET)[:, 0],
        lambda net, x: to(net, x, "grad_cam", where="0", relu=False),
    ),
    "LayerLRP": (
        lambda net, x: layer_lrp(net, x),
        lambda net, x: Lens(net).relevance(x, target=TARGET, rules="epsilon", layers="2").layers["2"][0],
    ),
    "NeuronGradient": (
        lambda net, x: attr.NeuronGradient(net, net[1]).attribute(x, UNIT),
        lambda net, x: of_unit(net, x, "gradient"),
    ),
    "NeuronIntegratedGradients": (
        lambda net, x: attr.NeuronIntegratedGradients(net, net[1]).attribute(x, UNIT, n_steps=20),
        lambda net, x: of_unit(net, x, "integrated_gradients", **FIXED),
    ),
    "NeuronDeepLift": (
        lambda net, x: attr.NeuronDeepLift(net, net[1]).attribute(x, UNIT),
        lambda net, x: of_unit(net, x, "deep_lift"),
    ),
    "NeuronGuidedBackprop": (
        lambda net, x: attr.NeuronGuidedBackprop(net, net[1]).attribute(x, UNIT),
        lambda net, x: of_unit(net, x, "guided_backprop"),
    ),
    "NeuronDeconvolution": (
        lambda net, x: attr.NeuronDeconvolution(net, net[1]).attribute(x, UNIT),
        lambda net, x: of_unit(net, x, "deconvnet"),
    ),
    "NeuronFeatureAblation": (
        lambda net, x: attr.NeuronFeatureAblation(net, net[1]).attribute(x, UNIT),
        lambda net, x: of_unit(net, x, "feature_ablation", features="values", baseline=0.0),
    ),
    "NeuronConductance": (
        lambda net, x: attr.NeuronConductance(net, net[1]).attribute(
            x, UNIT, target=TARGET, n_steps=20, method="gausslegendre"
        ),
        lambda net, x: to(net, x, "neuron_conductance", where="1", unit=UNIT, steps=20),
    ),
    "FGSM": (
        lambda net, x: robust.FGSM(net, each_loss, 0, 1).perturb(x, 0.1, torch.tensor(TARGET)),
        lambda net, x: Lens(net).attack(x, TARGET, eps=0.1, method="fgsm", bounds=(0, 1), keep="last").inputs,
    ),
    "PGD": (
        lambda net, x: robust.PGD(net, each_loss, 0, 1).perturb(x, 0.1, 0.02, 8, torch.tensor(TARGET)),
        lambda net, x: (
            Lens(net)
            .attack(x, TARGET, eps=0.1, step_size=0.2, steps=8, restarts=0, method="pgd", bounds=(0, 1), keep="last")
            .inputs
        ),
    ),
}
LOOSER = {"LRP": 1e-5, "LayerLRP": 1e-5, "LayerConductance": 1e-3, "ShapleyValues": 1e-5, "NeuronConductance": 1e-8}


def each_loss(output, labels):
    return nn.functional.cross_entropy(output, labels, reduction="none")


def with_rules(net):
    """The network with the rule of the layer for which captum's LRP has none."""
    copied = copy.deepcopy(net)
    copied[3].rule = EpsilonRule(epsilon=1e-9)
    return copied


def layer_lrp(net, x):
    ruled = with_rules(net)
    return attr.LayerLRP(ruled, ruled[2]).attribute(x, target=TARGET)


def at_zero(net, x, layer):
    """What a layer returns where the input is black."""
    return layerlens.capture(net, torch.zeros_like(x), layer)[layer]


@pytest.mark.parametrize("name", ROWS)
def test_the_values_are_those_of_captum(net, digits, name):
    x = digits[0][[1200, 1201, 1202]].clone()
    theirs, ours = (run(net, x) for run in ROWS[name])
    theirs = theirs.detach().to(ours)
    assert float(theirs.abs().max()) > 1e-3
    off = LOOSER.get(name, 1e-7)  # captum's steps, and its perturbations, are float32
    torch.testing.assert_close(ours, theirs, atol=off, rtol=off)
