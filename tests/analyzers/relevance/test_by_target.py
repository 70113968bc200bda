"""Several targets from one forward pass, and contrasts with all other classes."""

import pytest
import torch
from torch import nn

from layerlens import Lens, contrast, errors, relevance, relevance_by_target
from layerlens.axes.followed import followed
from layerlens.inputs.inputs import as_inputs
from tests.cases import CASES, double
from tests.snapshot import Snapshot


class Counted(nn.Module):
    """A model that counts its forward passes."""

    def __init__(self, model):
        super().__init__()
        self.model, self.runs = model, 0

    def forward(self, *args, **kwargs):
        self.runs += 1
        return self.model(*args, **kwargs)


@pytest.mark.parametrize("rules", ["auto", "epsilon", "epsilon_plus", "epsilon_plus_flat", "epsilon_gamma_box"])
@pytest.mark.parametrize("name", ["cnn", "hf_resnet", "mlp"])
def test_each_target_is_as_if_alone(name, rules):
    case = CASES[name]
    model, x = Counted(case.build().double()).eval(), double(case.example())
    targets = [0, 1, contrast(1, 0), None]
    followed(model, as_inputs(x).named_for(model))  # the axes of x, once for its shape
    before, runs = Snapshot(model, x), model.runs
    found = relevance_by_target(model, x, targets=targets, rules=rules, layers=nn.ReLU)
    before.check()
    assert model.runs == runs + 1
    for target, result in zip(targets, found, strict=True):
        alone = relevance(model, x, target=target, rules=rules, layers=nn.ReLU)
        torch.testing.assert_close(result.values, alone.values, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(result.score, alone.score)
        assert result.target == alone.target
        assert float(result.ledger.relative.max()) < 1e-9
        assert [entry.source for entry in result.ledger.entries] == [entry.source for entry in alone.ledger.entries]
        for layer, calls in alone.layers.items():
            torch.testing.assert_close(result.layers[layer], calls, rtol=1e-9, atol=1e-12)


def test_the_lens_reads_names_and_text_targets():
    lens = Lens(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), class_names=["cat", "dog"])
    found = lens.relevance_by_target(torch.randn(2, 3), targets=["dog", contrast("cat")])
    assert [result.target for result in found] == ["dog", "cat - mean of the others"]
    assert found[1].score.shape == (2,)


def test_no_targets_and_targets_without_a_path():
    net = nn.Linear(3, 2)
    for wrong in ([], "cat", None, 3):
        with pytest.raises(errors.OptionError, match="a list of one or more targets"):
            relevance_by_target(net, torch.randn(1, 3), targets=wrong)
    with pytest.raises(errors.RelevanceError, match="does not depend on the input"):
        relevance_by_target(net, torch.randn(1, 3), targets=[0, lambda output: output.detach().sum(1)])
    with pytest.raises(errors.TargetError, match="out of range"):
        relevance_by_target(net, torch.randn(1, 3), targets=[0, 2])


def test_a_contrast_with_all_others_is_its_class_less_the_mean_of_the_rest():
    logits = torch.tensor([[1.0, 5.0, 0.0, 3.0], [2.0, -1.0, 4.0, 0.0]], dtype=torch.float64)
    assert contrast(1)(logits).tolist() == pytest.approx([5 - 4 / 3, -1 - 2])
    assert contrast([1, 2])(logits).tolist() == pytest.approx([5 - 4 / 3, 4 - 1 / 3])
    predicted = contrast(None).resolve(logits)
    assert predicted(logits).tolist() == pytest.approx([5 - 4 / 3, 4 - 1 / 3])
    assert predicted.label == "class 1, class 2 (predicted) - mean of the others"
    by_token = torch.stack([logits, logits.flip(1)], dim=1)  # (batch, position, class)
    assert contrast((-1, 0))(by_token).tolist() == pytest.approx([3 - 2, 0 - 5 / 3])
    with pytest.raises(errors.TargetError, match="two classes or more"):
        contrast(0)(logits[:, :1])
    with pytest.raises(errors.TargetError, match="a list of 2 for a batch of 1"):
        contrast([1, 2])(logits[:1])


def test_contrastive_relevance_is_the_difference_of_two():
    case = CASES["cnn"]
    model, x = case.build().double(), double(case.example())
    one, *others = relevance_by_target(model, x, targets=range(4), rules="epsilon")
    both = relevance(model, x, target=contrast(0), rules="epsilon")
    torch.testing.assert_close(both.values, one.values - sum(other.values for other in others) / 3)
