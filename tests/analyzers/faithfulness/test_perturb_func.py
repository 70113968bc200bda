import pytest
import torch
from torch import nn

from layerlens.analyzers.faithfulness import infidelity, max_sensitivity
from layerlens.analyzers.saliency import gradient
from layerlens.errors import OptionError
from tests.cases import normal


class Pair(nn.Module):
    def forward(self, a, b):
        return torch.stack([(a**2).sum(dim=1) * b.sum(dim=1), a.sum(dim=1)], dim=1)


def shrink(inputs):
    """Take a tenth of every value; of several inputs each."""
    several = isinstance(inputs, tuple)
    taken = [0.1 * one for one in (inputs if several else (inputs,))]
    moved = [one - part for one, part in zip(inputs if several else (inputs,), taken, strict=True)]
    return (tuple(taken), tuple(moved)) if several else (taken[0], moved[0])


@pytest.mark.filterwarnings("ignore:Input Tensor")
def test_own_changes_are_those_of_captum():
    from captum.attr import Saliency
    from captum.metrics import infidelity as captums, sensitivity_max

    model, a, b = Pair(), normal(2, 3).double(), normal(2, 4, seed=1).double()
    maps = gradient(model, (a, b), target=0)
    expected = captums(model, shrink, (a, b), tuple(maps.values.values()), target=0, n_perturb_samples=2)
    for function in (shrink, lambda inputs: shrink(inputs)[1]):
        torch.testing.assert_close(
            infidelity(model, (a, b), maps, target=0, perturb_func=function, samples=2, normalize=False),
            expected,
        )
    steady = sensitivity_max(
        lambda own, **_: Saliency(model).attribute(own, target=0, abs=False), (a, b), lambda own: shrink(own)[1],
        n_perturb_samples=2,
    )  # fmt: skip
    found = max_sensitivity(model, (a, b), gradient, target=0, perturb_func=lambda own: shrink(own)[1], samples=2)
    torch.testing.assert_close(found, steady)


def test_own_random_changes_are_seeded_and_the_callers_generator_and_input_are_left_alone():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), normal(2, 3)
    kept = x.clone()

    def in_place(inputs):
        return inputs.add_(torch.rand(inputs.shape))

    for measure in (
        lambda seed: infidelity(model, x, gradient(model, x, target=0), target=0, perturb_func=in_place, seed=seed),
        lambda seed: max_sensitivity(model, x, gradient, target=0, perturb_func=in_place, seed=seed),
    ):
        state = torch.get_rng_state()
        first = measure(0)
        assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, kept)
        torch.rand(3)
        assert torch.equal(first, measure(0)) and not torch.equal(first, measure(1))


def test_changes_of_another_shape_are_errors():
    model, x = nn.Linear(3, 2), normal(2, 3)
    with pytest.raises(OptionError, match="must return the changed inputs"):
        infidelity(model, x, gradient(model, x, target=0), target=0, perturb_func=lambda own: own[:, :1])
    with pytest.raises(OptionError, match="must return the changed inputs"):
        max_sensitivity(model, x, gradient, target=0, perturb_func=lambda own: None)
    with pytest.raises(OptionError, match="give one"):
        max_sensitivity(model, x, gradient, target=0, perturb_func=shrink, radius=0.1)
