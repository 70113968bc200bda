"""Features that span several inputs, and windows of each input by itself: captum and all coalitions are the oracles."""

import pytest
import torch
from torch import nn

import layerlens
from layerlens.errors import OptionError
from tests.cases import normal

from .test_perturbation import shapley


class Pair(nn.Module):
    """Two tables of 3 and 2 columns that interact."""

    def forward(self, a, b):
        return a[:, 0] * b[:, 1] + 2 * a[:, 1] * a[:, 2] + b[:, 0] ** 2 + 3 * b[:, 1]


A, B = normal(2, 3).double(), normal(2, 2).double() + 1
SHARED = {"a": torch.tensor([[7, 3, 3]]), "b": torch.tensor([[3, 7]])}


def of(method, x=(A, B), **options):
    found = layerlens.saliency(Pair(), x, method=method, **options)
    return found, (found.values["0"], found.values["1"])


def test_equal_labels_of_two_inputs_are_one_feature():
    from captum.attr import FeatureAblation

    masks = (SHARED["a"], SHARED["b"])
    expected = FeatureAblation(Pair()).attribute((A, B), feature_mask=masks)
    found, values = of("feature_ablation", features=SHARED)
    assert found.settings["features"] == 2
    for own, theirs in zip(values, expected, strict=True):
        torch.testing.assert_close(own, theirs.to(own))


@pytest.mark.parametrize("method", ["shapley_sampling", "kernel_shap"])
def test_shapley_values_of_features_over_two_inputs(method):
    def of_groups(kept):  # (n, 2): feature 7, feature 3
        one, other = kept[:, :1], kept[:, 1:]
        return Pair()(torch.cat([one, other, other], dim=1) * A[0], torch.cat([other, one], dim=1) * B[0])

    expected = shapley(of_groups, torch.ones(2).double(), torch.zeros(2).double())
    _, values = of(method, features=SHARED)
    torch.testing.assert_close(values[0][0], expected[[0, 1, 1]])
    torch.testing.assert_close(values[1][0], expected[[1, 0]])


def test_a_permuted_feature_comes_from_one_sample_in_both_inputs():
    _, values = of("permutation", features={"a": torch.tensor([0, 0, 0]), "b": torch.tensor([0, 0])}, draws=1)
    score = Pair()(A, B)
    torch.testing.assert_close(values[0][:, 0], score - score.flip(0))
    torch.testing.assert_close(values[1][:, 1], score - score.flip(0))


def test_names_of_features_stay_apart():
    assert of("feature_ablation", features="values")[0].settings["features"] == 5
    found, _ = of("feature_ablation", features={"a": torch.tensor([0, 0, 0]), "b": "values"})
    assert found.settings["features"] == 3


def test_windows_and_strides_by_input():
    from captum.attr import Occlusion

    expected = Occlusion(Pair()).attribute((A, B), sliding_window_shapes=((2,), (1,)), strides=(1, 1))
    found, values = of("occlusion", window={"a": 2, "b": [1]}, stride={"a": 1})
    assert found.settings["window"] == {"0": (2,), "1": (1,)}
    for own, theirs in zip(values, expected, strict=True):
        torch.testing.assert_close(own, theirs.to(own))
    with pytest.raises(OptionError, match="input name in window= 'c'"):
        of("occlusion", window={"c": 2})


def test_windows_over_channels():
    from captum.attr import Occlusion

    net, x = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(18, 2)).double(), normal(1, 3, 5, 5)
    found = layerlens.saliency(net, x.double(), target=1, method="occlusion", window=(1, 2, 2), stride=1)
    expected = Occlusion(net).attribute(x.double(), target=1, sliding_window_shapes=(1, 2, 2), strides=1)
    torch.testing.assert_close(found.tensor, expected.to(found.tensor))
