import contextlib
import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from layerlens.errors import InputError, OptionError
from layerlens.model.borrowed import borrowed, generator_states, restore_generators, seed_numpy


class Counting(nn.Module):
    """Writes into its buffers in every way that models do."""

    def __init__(self):
        super().__init__()
        self.fc, self.bn, self.drop = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("added", torch.zeros(2))
        self.register_buffer("by_data", torch.zeros(2))
        self.register_buffer("emptied", torch.ones(2))
        self.register_buffer("nothing", None)

    def forward(self, x):
        self.replaced = self.replaced + 1
        self.added += 1
        self.by_data.data.add_(1)
        self.emptied = None
        self.nothing = torch.ones(1)
        if not hasattr(self, "cache"):
            self.register_buffer("cache", torch.ones(3))
        return self.drop(self.bn(self.fc(x)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Counting()
    model.bn.eval()  # mixed flags
    model.drop.train()
    model.fc.weight.requires_grad_(False)
    model.fc.bias.grad = torch.ones(4)
    return model


def state(model):
    """All that must come back: objects by identity, bits by value."""
    return {
        "flags": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grad": [id(parameter.grad) for parameter in model.parameters()],
        "grad bits": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "buffers": [(name, id(buffer)) for module in model.modules() for name, buffer in module._buffers.items()],
        "bits": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
    }


def misuse(model):
    """What a careless analyzer does to a model."""
    model.train()
    model(torch.randn(6, 3))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
        parameter.grad = torch.zeros_like(parameter)
    model.fc.bias.grad = None
    np.random.rand(3)
    random.random()


def test_everything_comes_back(model):
    before = state(model)
    with borrowed(model):
        misuse(model)
        assert state(model)["bits"] != before["bits"]
    assert state(model) == before


def test_numpy_continues_as_it_was_however_often_it_was_read(model):
    np.random.seed(0)
    for draw in (lambda: None, np.random.rand, np.random.randn, np.random.randn):  # the second normal was drawn ahead
        draw()
        before = str(np.random.get_state())
        for use in (lambda: None, np.random.randn, np.random.rand, lambda: np.random.seed(5)):
            with borrowed(model):
                use()
            assert str(np.random.get_state()) == before


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1), GeneratorExit()])
def test_everything_comes_back_after_an_error(model, error):
    before = state(model)
    with pytest.raises(type(error)) as raised, borrowed(model):
        misuse(model)
        raise error
    assert raised.value is error
    assert state(model) == before


@pytest.mark.parametrize("outer", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("grad", [True, False])
def test_the_grad_mode_is_as_asked_whatever_the_caller_is_in(model, outer, grad):
    before = state(model)
    with outer():
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        with borrowed(model, grad=grad):
            assert torch.is_grad_enabled() is grad and not torch.is_inference_mode_enabled()
            misuse(model)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == modes
    assert state(model) == before


@pytest.mark.parametrize(("mode", "flags"), [("eval", {False}), ("train", {True}), ("keep", {True, False})])
def test_the_mode_is_as_asked(model, mode, flags):
    before = state(model)
    with borrowed(model, mode=mode):
        assert {module.training for module in model.modules()} == flags
        if mode == "keep":
            assert state(model)["flags"] == before["flags"]
    assert state(model) == before


def test_batchnorm_in_train_mode_updates_without_a_trace_and_comes_back():
    """BatchNorm's own update does not count as an in-place write: only the bits tell."""
    norm = nn.BatchNorm1d(3)
    mean = norm.running_mean
    with borrowed(norm, mode="train"):
        norm(5 + torch.randn(8, 3))
        assert norm.running_mean.abs().min() > 0.1
    assert norm.running_mean is mean and not mean.any()
    assert torch.equal(norm.running_var, torch.ones(3)) and norm.num_batches_tracked == 0


def test_buffers_that_did_not_change_are_not_written():
    """A caller's graph may have saved them: a write, even of the same bits, would break its backward."""
    norm = nn.BatchNorm1d(3).eval()
    loss = norm(torch.randn(4, 3)).sum()
    version = norm.running_mean._version
    with borrowed(norm):
        norm(torch.randn(4, 3))
    assert norm.running_mean._version == version
    loss.backward()


def test_a_buffer_that_appeared_is_gone(model):
    with borrowed(model):
        model(torch.randn(4, 3))
        assert hasattr(model, "cache")
    assert not hasattr(model, "cache") and "cache" not in model.state_dict()


class FrozenNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.calls = nn.BatchNorm1d(2).eval(), 0

    def train(self, mode=True):
        self.calls += 1
        return super().train(mode)


def test_a_train_method_of_the_user_is_not_called():
    model = FrozenNorm()
    with borrowed(model, mode="train"):
        assert model.norm.training
    assert model.calls == 0 and model.training and not model.norm.training


def test_random_numbers_go_on_as_if_nothing_was(model):
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    with borrowed(model):
        torch.rand(100), np.random.rand(100), random.random()
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


def test_borrowed_twice(model):
    before = state(model)
    with borrowed(model, mode="train"):
        with borrowed(model):
            assert not model.training
            misuse(model)
        assert model.training and model.drop.training
    assert state(model) == before


def test_every_case_comes_back(case):
    model = case.build().train()
    next(model.parameters()).requires_grad_(False)
    before = state(model)
    with borrowed(model, mode="train"):
        for parameter in model.parameters():
            parameter.requires_grad_()
        example = case.example()
        model(**example) if isinstance(example, dict) else model(example)
    assert state(model) == before


def test_what_is_no_module_is_refused():
    with pytest.raises(InputError) as error, borrowed(torch.relu):
        pass
    assert str(error.value) == (
        "a model must be a torch.nn.Module, got builtin_function_or_method. Wrap a function in a module."
    )
    with pytest.raises(InputError, match=r"a model must be a torch\.nn\.Module, got NoneType"), borrowed(None):
        pass


def test_an_unknown_mode_names_the_known(model):
    with pytest.raises(OptionError) as error, borrowed(model, mode="evil"):
        pass
    assert str(error.value) == "unknown mode 'evil'. Closest: eval. Known: eval, train, keep."


def test_torchscript_is_refused_by_name():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(nn.Sequential(nn.Linear(5, 3)), torch.randn(1, 5))
    with pytest.raises(InputError, match="a TorchScript model"), borrowed(traced):
        pass


class Caching(nn.Module):
    """Keeps tensors of its runs in the ways that models do."""

    def __init__(self):
        super().__init__()
        self.linear, self.cache, self.state, self.runs = nn.Linear(2, 2), {"kept": torch.ones(1)}, None, 0

    def forward(self, x):
        self.runs += 1
        self.state = self.linear(x)
        self.seen = x
        self.cache["bias"] = self.cache["kept"] = self.linear.bias * 2
        return self.state


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_tensors_that_a_model_keeps_as_attributes_are_taken_back(error):
    model = Caching()
    kept = model.cache["kept"]
    with contextlib.suppress(ValueError, KeyboardInterrupt), borrowed(model):
        model(torch.ones(1, 2))
        if error is not None:
            raise error
    assert model.state is None and not hasattr(model, "seen") and model.runs == 0
    assert list(model.cache) == ["kept"] and model.cache["kept"] is kept
    copy.deepcopy(model)


@pytest.mark.parametrize("draw", [np.random.rand, np.random.randn, lambda: np.random.seed(1)])
@pytest.mark.parametrize("begin", [np.random.rand, np.random.randn, lambda: None])
def test_the_generator_of_numpy_continues_where_it_was_after_a_seed(begin, draw):
    before, drawn = np.random.get_state(), []
    for restored in (False, True):
        seed_numpy(7)
        begin()
        states = generator_states()
        if restored:
            draw()
            restore_generators(states)
        drawn.append(np.random.randn(3).tolist())
    np.random.seed(7)
    begin()
    drawn.append(np.random.randn(3).tolist())
    np.random.set_state(before)
    assert drawn[0] == drawn[1] == drawn[2]
