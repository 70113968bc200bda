import math

import pytest
import torch
from torch import nn

from layerlens.analyzers.saliency import integrated_gradients
from layerlens.errors import OptionError, TargetError
from layerlens.inputs.inputs import as_inputs
from tests.cases import CASES, normal

# Random numbers in the forward pass, a jump between routes, and RMSNorm of a zero embedding: no sum to approach.
NO_SUM = {"vae", "early_exit", "hf_llama", "hf_llava"}


class Quadratic(nn.Module):
    """x^T A x + b^T x, one score."""

    def __init__(self, size=4):
        super().__init__()
        self.a, self.b = nn.Parameter(normal(size, size).double()), nn.Parameter(normal(size, seed=1).double())

    def forward(self, x):
        return (x @ self.a * x).sum(dim=1, keepdim=True) + x @ self.b[:, None]


@pytest.mark.parametrize("steps", [2, 50])
def test_closed_form_of_a_quadratic(steps):
    model, x, start = Quadratic(), normal(3, 4).double(), normal(3, 4, seed=5).double()
    result = integrated_gradients(model, x, baseline=start, steps=steps)
    symmetric = model.a.detach() + model.a.detach().T
    expected = (x - start) * (0.5 * (x + start) @ symmetric + model.b.detach())  # the gradient is linear on the way
    torch.testing.assert_close(result.tensor, expected, rtol=1e-7, atol=1e-7)  # captum's weights are float32
    assert (result.checks["completeness gap"] < 1e-6).all()


def test_a_linear_model_is_exact_with_one_step():
    model, x = nn.Linear(5, 3).double(), normal(2, 5).double()
    result = integrated_gradients(model, x, target=[0, 2], steps=1, baseline=0.5)
    torch.testing.assert_close(result.tensor, (x - 0.5) * model.weight.detach()[[0, 2]], rtol=1e-7, atol=1e-8)
    assert result.checks["steps"].tolist() == [1, 1]


def test_agrees_with_captum():
    from captum.attr import IntegratedGradients

    model, x = CASES["depthwise"].build().double(), CASES["depthwise"].example().double()
    expected = IntegratedGradients(model).attribute(x, 0.25, target=torch.tensor([3, 1]), n_steps=20)
    result = integrated_gradients(model, x, target=[3, 1], baseline=0.25, steps=20, batch_size=7, tolerance=math.inf)
    torch.testing.assert_close(result.tensor, expected, rtol=1e-7, atol=1e-9)


def test_completeness_on_every_case(case):
    if case.name in NO_SUM:
        pytest.skip("the score jumps or is random on the way")
    given = as_inputs(case.example()).map(lambda t: t.double() if t.is_floating_point() else t)
    model = case.build().double()
    result = integrated_gradients(model, given, target=case.target, tolerance=0.02, max_steps=1600)
    gap = result.checks["completeness gap"]
    assert (gap <= 0.02).all()
    values = result.values if isinstance(result.values, dict) else {"": result.values}
    total = sum(value.reshape(2, -1).sum(dim=1) for value in values.values())
    low = integrated_gradients(model, given, target=case.target, steps=1, tolerance=math.inf)
    assert torch.equal(low.score, result.score)
    assert ((total - result.score).abs() > 0).all()  # the baseline's own score is not part of the sum


def test_samples_that_miss_the_tolerance_get_more_steps_alone():
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU()).double()
    model[0].weight.data.fill_(1.0)
    model[0].bias.data.fill_(-0.9)
    x = torch.tensor([[1.0], [9.0]]).double()
    result = integrated_gradients(model, x, steps=4, tolerance=0.02, max_steps=1024)
    assert result.checks["steps"][0] > result.checks["steps"][1]
    for k in range(2):
        alone = integrated_gradients(model, x[k : k + 1], steps=4, tolerance=0.02, max_steps=1024)
        assert alone.checks["steps"][0] == result.checks["steps"][k]
        torch.testing.assert_close(alone.tensor[0], result.tensor[k])


def test_a_gap_that_stays_warns_and_is_reported():
    class Step(nn.Module):
        def forward(self, x):
            return x + (x > 0.5).to(x)

    with pytest.warns(UserWarning, match=r"after 8 steps the values \(gap 0\.5\) miss"):
        result = integrated_gradients(Step(), torch.ones(1, 1), steps=4, max_steps=10)
    assert result.checks["completeness gap"].item() == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["cnn", "encoder", "hf_bert", "two_inputs", "lstm"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_batch_size_and_the_batch_do_not_matter(name, batch_size):
    case = CASES[name]
    model, given = case.build(), as_inputs(case.example())
    given = given.map(lambda t: t.double() if t.is_floating_point() else t)
    model = model.double()
    options = {"steps": 7, "tolerance": math.inf, "target": [1, 2]}
    both = integrated_gradients(model, given, batch_size=batch_size, **options)
    for k in range(2):
        alone = integrated_gradients(model, given.rows(torch.tensor([k])), **{**options, "target": [k + 1]})
        for key, value in (both.values if isinstance(both.values, dict) else {"": both.values}).items():
            other = alone.values[key] if key else alone.values
            torch.testing.assert_close(value[k], other[0], rtol=1e-6, atol=1e-9)


def test_the_predicted_class_is_that_of_the_input_all_the_way():
    model = nn.Linear(1, 2, bias=False)
    model.weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
    result = integrated_gradients(model, torch.tensor([[2.0]]), baseline=-5.0)
    assert result.target == "class 0 (predicted)" and result.tensor.item() == pytest.approx(7.0)


def test_no_difference_to_the_baseline_is_no_gap():
    with pytest.warns(UserWarning, match=r"zero everywhere"):
        result = integrated_gradients(nn.Linear(2, 1), torch.ones(1, 2), baseline=1.0)
    assert result.checks["completeness gap"].tolist() == [0.0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, "steps must be"),
        ({"max_steps": -1}, "max_steps must be"),
        ({"tolerance": 0}, "tolerance must be above 0"),
        ({"batch_size": "all"}, "batch_size must be a whole number of at least 1 or 'auto'"),
        ({"baseline": "gray"}, "unknown baseline 'gray'.*Known: zero, mean, blur"),
        ({"baseline": "blur"}, r"baseline 'blur' is for images, .* input '0' is float32 \(2, 6\)"),
        ({"baseline": torch.ones(5)}, r"shape \(5,\) does not broadcast to input '0' of shape \(2, 6\)"),
        ({"baseline": {"y": 0}}, "unknown input name in the baseline 'y'"),
        ({"baseline": None}, "cannot read a baseline from NoneType"),
    ],
)
def test_bad_options_are_errors(options, text):
    with pytest.raises(OptionError, match=text):
        integrated_gradients(CASES["mlp"].build(), CASES["mlp"].example(), **options)


def test_an_out_of_range_target_is_an_error():
    with pytest.raises(TargetError, match=r"class 9 is out of range"):
        integrated_gradients(CASES["mlp"].build(), CASES["mlp"].example(), target=9)
