"""Sums and differences of results."""

import dataclasses

import pytest
import torch
from torch import nn

from layerlens import Lens, load
from layerlens.errors import InputError
from layerlens.results import Attribution, Relevance
from tests.cases import normal
from tests.results.examples import attribution, ledger, profile, relevance


def both(**changes):
    first = attribution()
    return first, dataclasses.replace(first, **{"values": normal(2, 3, 4, 4, seed=11), **changes})


def test_sums_and_differences_are_those_of_values_and_scores():
    first, second = both(target="class 2", score=torch.tensor([0.5, 1.0]))
    added, taken = first + second, first - second
    assert torch.equal(added.tensor, first.tensor + second.tensor)
    assert torch.equal(taken.tensor, first.tensor - second.tensor)
    assert added.score.tolist() == [2.0, -1.25] and taken.score.tolist() == [1.0, -3.25]
    assert added.target == "class 1 + class 2" and taken.target == "class 1 - class 2"
    assert taken.method == "gradient x input" and taken.settings == first.settings
    assert taken.checks == {} and taken.standard_error is None and taken.inputs is first.inputs


def test_the_difference_of_two_targets_is_the_attribution_of_their_difference():
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    lens, x = Lens(model), normal(4, 5).double()
    one, two = (lens.saliency(x, target=target, method="input_x_gradient") for target in (2, 0))
    direct = lens.saliency(x, target=lambda output: output[:, 2] - output[:, 0], method="input_x_gradient")
    assert torch.allclose((one - two).tensor, direct.tensor, atol=1e-12)
    assert torch.allclose((one - two).score, direct.score, atol=1e-12)
    assert torch.allclose(((one - two) + two).tensor, one.tensor, atol=1e-12)


def test_targets_of_each_sample_settings_of_each_side_and_files(tmp_path):
    first, second = both(targets=("a", "b"), method="IG", settings={"steps": 8, "baseline": "blur"})
    taken = first - second
    assert taken.targets == ("class 1 - a", "class 1 - b") and taken.method == "gradient x input - IG"
    assert taken.settings["steps"] == 8 and taken.settings["second"] == {"baseline": "blur"}
    assert taken.settings["first"]["baseline"] == "zero"
    assert torch.equal(load(taken.save(tmp_path / "r")).tensor, taken.tensor)
    assert len(taken.plot().axes) == 2


def test_magnitudes_add_up_to_magnitudes_and_their_difference_has_signs():
    first, second = (dataclasses.replace(one, values=one.tensor.abs(), signed=False) for one in both())
    assert not (first + second).signed and (first - second).signed


def test_several_inputs_and_relevance_and_bits_of_the_originals():
    one = attribution(values={"a": normal(2, 3), "b": normal(2, 5)}, inputs=None)
    two = attribution(values={"a": normal(2, 3, seed=1), "b": normal(2, 5, seed=1)}, inputs=None)
    before = one.values["a"].clone()
    found = (one - two).values
    assert list(found) == ["a", "b"] and torch.equal(found["b"], one.values["b"] - two.values["b"])
    assert torch.equal(one.values["a"], before)
    both_ways = relevance() + attribution()
    assert type(both_ways) is Attribution and not isinstance(both_ways, Relevance)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"units": "probability"}, "one is in 'score', the other in 'probability'.*compare_methods"),
        ({"signed": False}, "one has signs and the other only sizes"),
        ({"values": normal(2, 3, 4, 5)}, r"different shapes, float32 \(2, 3, 4, 4\) and float32 \(2, 3, 4, 5\)"),
        ({"values": {"x": normal(2, 3, 4, 4)}}, "different shapes"),
        ({"settings": {"where": "conv"}}, "one is at the input .* the other at conv"),
        ({"axes": None}, "one is at the input with axes"),
        ({"inputs": normal(2, 3, 4, 4, seed=3)}, "they are of different inputs. Make both of the same batch"),
        ({"score": torch.ones(3)}, r"scores have shapes \(2,\) and \(3,\)"),
    ],
)
@pytest.mark.parametrize("verb", ["add", "subtract"])
def test_what_has_no_common_meaning_is_refused(verb, changes, expected):
    first, second = both(**changes)
    with pytest.raises(InputError, match=f"cannot {verb} these attributions: .*{expected}"):
        first + second if verb == "add" else first - second


def test_different_texts_are_refused():
    one = attribution(values=normal(2, 2), inputs=None, axes=None, tokens=[["a", "b"], ["c", "d"]])
    with pytest.raises(InputError, match="they are of different tokens"):
        one + dataclasses.replace(one, tokens=[["a", "b"], ["c", "e"]])


@pytest.mark.parametrize("other", [1, "x", ledger()])
def test_other_things_do_not_add_up(other):
    with pytest.raises(TypeError, match="unsupported operand"):
        attribution() + other
    with pytest.raises(TypeError, match="unsupported operand"):
        profile() - other


def test_the_difference_of_two_profiles():
    first, second = profile(), profile(values=torch.tensor([4.0, 1.0, 2.0]), error=torch.tensor([0.1, 0.1, 0.4]))
    taken = first - second
    assert taken.values.tolist() == [-3, 2, 0] and taken.signed and taken.layers == first.layers
    assert taken.error.tolist() == pytest.approx([0.02**0.5, 0.05**0.5, 0.5])
    assert taken.quantity == "difference in Jacobian norm" and taken.ranked()[0] == ("conv", -3.0)
    assert "first profile" in taken.explain() and taken.null is None
    assert (first - dataclasses.replace(second, error=None)).error is None
    assert len(taken.plot().axes) == 1


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"quantity": "noise"}, "their quantity differ, 'Jacobian norm' and 'noise'"),
        ({"units": "1"}, "their units differ"),
        ({"layers": ("conv", "relu", "fc")}, r"'3 layers' and '3 layers' \(not in both: relu #1, fc\)"),
        ({"layers": ("relu", "conv", "relu #1")}, "in another order"),
        ({"series": ("a",)}, "their series differ"),
    ],
)
def test_profiles_of_different_things_have_no_difference(changes, expected):
    with pytest.raises(InputError, match=f"cannot subtract these profiles: .*{expected}"):
        profile() - profile(**changes)
