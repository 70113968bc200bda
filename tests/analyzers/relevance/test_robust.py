"""Circumstances: precision, compiled models, threads, cuts, numbers that are none, memory."""

import gc
import threading
import warnings

import pytest
import torch
from torch import nn

from layerlens import Lens, errors, relevance
from tests.cases import CASES, normal


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).eval()  # fmt: skip


X = normal(2, 2, 4, 4)


@pytest.mark.parametrize("rules", ["epsilon", "epsilon_plus"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_and_no_more(dtype, rules):
    exact = relevance(net(), X, target=0, rules=rules).values
    half = relevance(net().to(dtype), X.to(dtype), target=0, rules=rules)
    assert half.values.dtype == dtype
    torch.testing.assert_close(half.values.float(), exact, rtol=0, atol=0.05 * float(exact.abs().max()))
    assert float(half.ledger.relative.max()) < 0.02


def test_autocast():
    for name in ("cnn", "hf_bert"):
        case = CASES[name]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = relevance(case.build(), case.example(), target=case.target)
        assert float(result.ledger.relative.max()) < 0.02


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*is compiled")
def test_a_compiled_model_is_run_as_written():
    compiled = relevance(torch.compile(net()), X, target=0)
    torch.testing.assert_close(compiled.values, relevance(net(), X, target=0).values)


def test_a_model_made_in_inference_mode_is_refused_by_name():
    with torch.inference_mode():
        model = net()
    with pytest.raises(errors.InputError, match=r"made inside torch\.inference_mode"):
        relevance(model, X, target=0)
    assert len(Lens(model).capture(X)) == 5  # nothing of autograd is needed here


def test_threads_do_not_disturb_each_other():
    names = ("cnn", "lstm", "hf_bert", "cnn")
    jobs = [(CASES[name].build(), CASES[name].example(), CASES[name].target) for name in names]
    alone = [relevance(model, x, target=target).tensor for model, x, target in jobs]
    found = [[] for _ in jobs]

    def work(place):
        model, x, target = jobs[place]
        for _ in range(4):
            found[place].append(relevance(model, x, target=target).tensor)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results, expected in zip(found, alone, strict=True):
        assert len(results) == 4
        for result in results:
            torch.testing.assert_close(result, expected)


class Detaches(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"a": nn.Linear(4, 4)})
        self.b = nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.inner["a"](x) + 2 * self.inner["a"](x).detach())


def test_a_cut_is_reported_with_its_place():
    with pytest.warns(UserWarning, match="detaches a signal in the model itself, so relevance is cut there"):
        result = relevance(Detaches(), normal(2, 4), target=0)
    assert float(result.ledger.relative.max()) < 1e-5
    with pytest.warns(UserWarning, match=r"detaches a signal in '0'"):
        relevance(nn.Sequential(Detaches(), nn.Linear(2, 2)), normal(2, 4), target=0)


class Divides(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
        self.norm = Norm()

    def forward(self, x):
        return self.b(self.norm(self.a(x)))


class Norm(nn.Module):
    def forward(self, x):
        return x / (x - x).sum()


def test_the_layer_that_made_the_first_nan_is_named():
    for analyze in (Lens(Divides()).relevance, Lens(Divides()).saliency):
        with pytest.raises(errors.TargetError, match="first output that is not finite comes from layer 'norm'"):
            analyze(normal(2, 4), target=0)


def test_a_score_of_0_has_no_relevance():
    model = nn.Linear(4, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    result = relevance(model, normal(2, 4), target=0)
    assert float(result.values.abs().max()) == 0 == float(result.ledger.relative.max())


@pytest.mark.parametrize("rules", ["epsilon", "epsilon_plus", "epsilon_gamma_box"])
def test_nothing_is_left_behind_even_without_garbage_collection(rules):
    model = net()
    relevance(model, X, target=0, rules=rules)

    def tensors():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = tensors()
        for _ in range(3):
            relevance(model, X, target=0, rules=rules)
        assert tensors() == before
    finally:
        gc.enable()
