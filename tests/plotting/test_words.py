import pytest

from layerlens.analyzers.common.registry import METHODS
from layerlens.analyzers.relevance.rules.rulebook import RULEBOOKS
from layerlens.plotting.words import words


@pytest.mark.parametrize("name", [*METHODS, *(f"relevance, {name}" for name in RULEBOOKS)])
def test_no_identifier_is_left_of_the_name_of_a_method(name):
    assert "_" not in words(name) and words(name)[0].isupper()


@pytest.mark.parametrize(
    "name, expected",
    [
        ("grad_cam at blocks.2_conv", "Grad-CAM at blocks.2_conv"),
        ("relevance (epsilon_plus), sum over places", "Relevance (epsilon-plus), sum over places"),
        ("concept relevance, epsilon_alpha2_beta1", "Concept relevance (epsilon-alpha2-beta1)"),
        ("deep_lift - grad_cam", "DeepLIFT - Grad-CAM"),
        ("gradient + relevance, epsilon", "Gradient + Relevance (epsilon)"),
        ("dogs - cats; null: exceeded in 5 % of permutations",) * 2,
        ("x", "x"),
        ("cascading randomization of guided_backprop", "Cascading randomization of Guided backpropagation"),
        ("Jacobian, 4 probes, exact", "Jacobian, 4 probes, exact"),
        ("features.0.conv_1", "features.0.conv_1"),
        ("hooks on SGD.step", "Hooks on SGD.step"),
        ("", ""),
    ],
)
def test_words(name, expected):
    assert words(name) == expected
