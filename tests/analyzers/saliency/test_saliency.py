import copy
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from layerlens.analyzers.common import batch_size
from layerlens.analyzers.common.batch_size import first_score
from layerlens.analyzers.common.scorer import Scorer
from layerlens.analyzers.saliency import saliency
from layerlens.analyzers.saliency.saliency import known_methods
from layerlens.errors import InputError, OptionError, UnknownOption
from layerlens.inputs.inputs import as_inputs
from layerlens.model.borrowed import borrowed, freeze
from tests.cases import CASES, normal

METHOD = pytest.mark.parametrize(
    "method",
    [
        m.name
        for m in known_methods().values()
        if m.family in ("gradient", "path") and not m.needs.startswith(("an image", "a layer"))  # test_paths.py
    ],
)


def attribute(model, x, *, method, **options):
    """The method, with fewer of the passes that come one after the other."""
    few = {"steps": 10, "tolerance": 1e9} if method == "guided_ig" else {}
    return saliency(model, x, method=method, **few, **options)


def state_of(model):
    parts = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    grads = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    return parts, flags, grads


def same(before, after):
    assert all(torch.equal(before[0][name], tensor) for name, tensor in after[0].items())
    assert before[1:] == after[1:]


@METHOD
def test_every_method_runs_on_every_case_and_returns_the_model(case, method, hooks_of):
    if method in ("deep_lift", "deep_shap") and case.name == "early_exit":
        with pytest.raises(InputError, match=r"another route for the baseline"):
            attribute(case.build(), case.example(), target=case.target, method=method)
        return
    model, given = case.build().train(), as_inputs(case.example())
    before, kept = state_of(model), copy.deepcopy(given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = attribute(model, given, target=case.target, method=method)
    same(before, state_of(model))
    assert hooks_of(model) == 0
    assert all(torch.equal(tensor, given.tensors()[name]) for name, tensor in kept.tensors().items())
    values = result.values if isinstance(result.values, dict) else {"": result.values}
    for name, value in values.items():
        source = given.tensors()[name] if name else next(iter(given.tensors().values()))
        assert value.shape == source.shape and value.isfinite().all() and not value.requires_grad
    assert result.method == method and result.score.shape == (2,)


@METHOD
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_inside_leaves_the_model_as_it_was(method, error, hooks_of):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.fc, self.runs = nn.Embedding(5, 3), nn.Linear(3, 2), 0

        def forward(self, ids):
            self.runs += 1
            if self.runs == 3:
                raise error("stop")
            return self.fc(self.embedding(ids).sum(dim=1))

    model = Breaks().train()
    before = state_of(model)
    if method in ("gradient", "input_x_gradient", "guided_backprop", "deconvnet"):
        model.runs = 1
    with pytest.raises(error, match=r"stop"):
        attribute(model, torch.tensor([[1, 2]]), target=0, method=method)
    same(before, state_of(model))
    assert hooks_of(model) == 0


@METHOD
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_are_kept(method, dtype):
    model, x = CASES["depthwise"].build().to(dtype), CASES["depthwise"].example().to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the sum in bfloat16 is off by more than the tolerance
        result = saliency(model, x, target=1, method=method)
    assert result.tensor.dtype == dtype and result.score.dtype == dtype
    reference = saliency(model.float(), x.float(), target=1, method=method).tensor
    likeness = torch.cosine_similarity(result.tensor.float().flatten(), reference.flatten(), dim=0)
    assert likeness > (0.9 if dtype == torch.bfloat16 else 0.99999)


@METHOD
def test_no_grad_inference_mode_and_frozen_parameters_do_not_matter(method):
    case = CASES["cnn"]
    model, x = case.build(), case.example()
    expected = attribute(model, x, target=2, method=method).tensor
    frozen = case.build().requires_grad_(False)
    torch.testing.assert_close(attribute(frozen, x, target=2, method=method).tensor, expected)
    with torch.no_grad():
        torch.testing.assert_close(attribute(model, x, target=2, method=method).tensor, expected)
    with torch.inference_mode():
        torch.testing.assert_close(attribute(model, x.clone(), target=2, method=method).tensor, expected)
    torch.testing.assert_close(attribute(model, x.clone().requires_grad_(), target=2, method=method).tensor, expected)


@METHOD
def test_forward_replaces_the_call(method):
    model, x = CASES["mlp"].build(), CASES["mlp"].example()
    expected = attribute(nn.Sequential(model, nn.Softmax(dim=1)), x, target=0, method=method)
    result = attribute(model, x, target=0, method=method, forward=lambda model, x: model(x).softmax(dim=1))
    torch.testing.assert_close(result.tensor, expected.tensor)


def test_unknown_names_are_errors_that_list_the_known():
    model, x = nn.Linear(2, 1), torch.ones(1, 2)
    with pytest.raises(
        OptionError, match=r"unknown saliency method 'integrated_gradient'. Closest: integrated_gradients"
    ):
        saliency(model, x, method="integrated_gradient")
    with pytest.raises(OptionError, match=r"gradient\(\) has no option 'steps'. Known: hold, magnitude, where"):
        saliency(model, x, method="gradient", steps=3)
    with pytest.raises(OptionError, match=r"input_x_gradient\(\) has no option 'steps'. Known: hold, where"):
        saliency(model, x, method="input_x_gradient", steps=3)
    with pytest.raises(
        OptionError, match=r"no option 'step'. Closest: steps.* Known: baseline, batch_size, hold, max_steps, .*steps"
    ):
        saliency(model, x, method="integrated_gradients", step=3)
    with pytest.raises(UnknownOption, match=r"no option 'steps': name a method .* method='integrated_gradients'"):
        saliency(model, x, steps=3)


def test_options_reach_the_method():
    result = saliency(nn.Linear(2, 1), torch.ones(1, 2), method="integrated_gradients", steps=3, baseline=0.5)
    assert result.settings["steps"] == 3 and result.settings["baseline"] == "0.5"
    assert result.settings["batch_size"] > 1


def test_the_automatic_batch_is_bounded_by_what_autograd_saves(monkeypatch):
    class Wide(nn.Module):
        def __init__(self, count):
            super().__init__()
            self.count = count

        def forward(self, x):
            big = x.expand(-1, self.count)
            return big.exp().sum(dim=1, keepdim=True)  # saves count floats for each sample

    def batch(count, samples=1):
        model = Wide(count)
        with borrowed(model):
            scorer = Scorer(model, normal(samples, 1), 0)
            return first_score(scorer, scorer.start(), "auto")[1]

    assert batch(4) == 1024
    assert batch(2**20) == 8  # 4 MiB each: more than `SMALL` for eight
    assert batch(2**20, samples=9) == 8
    monkeypatch.setattr(batch_size, "REUSED", 5 * 2**20)
    monkeypatch.setattr(batch_size, "SMALL", 0)
    assert batch(2**20) == 1  # none above 5 MiB
    monkeypatch.undo()
    monkeypatch.setattr(batch_size, "MEMORY", 2**24 - 1)
    assert batch(2**20) == 3  # 4 MiB each
    monkeypatch.setattr(batch_size, "MEMORY", 2**20)
    assert batch(2**20) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the system has no /proc")
def test_many_calls_do_not_widen_the_process():
    def mapped():
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmData:")[1].split()[0]) / 1024

    model, x = CASES["mlp"].build(), CASES["mlp"].example()
    kept = [saliency(model, x, method="smooth_grad", samples=4, target=1)]
    before = mapped()
    kept += [saliency(model, x, method="smooth_grad", samples=4, target=1) for _ in range(30)]
    assert mapped() - before < 64  # MiB; each call took 32 more once


def test_freezing_keeps_fewer_activations():
    model = CASES["cnn"].build()
    with borrowed(model):
        freeze(model)
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
