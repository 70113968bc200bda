"""Which methods fit an input, and what they cost: against the passes that they really take, and errors when forced."""

import pytest
import torch
from torch import nn

import layerlens
from layerlens import Lens
from layerlens.analyzers.common.registry import METHODS
from layerlens.analyzers.saliency.fitting import NEEDS, Fit, fit_of
from layerlens.errors import LayerLensError, OptionError

FOR_CALLER = {"a baseline", "references (noise when none are given)", "a layer (where=)", "a unit of it (unit=)"}
WHOLE = Fit(2, 5, (8, 8), True, 64, True, True, True, "conv", 16, 0.5, 1.5)
"""A fit that has everything."""


def image_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def table_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))


def text_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(24, 2))


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_costs_and_needs_is_read(name):
    row = METHODS[name]
    assert (WHOLE.passes(row.passes) is None) == (name == "auto")
    needs = set(row.needs.replace("; ", ", ").split(", ")) if row.needs else set()
    assert needs <= {*NEEDS, *FOR_CALLER}
    assert WHOLE.lacks(row) == ""


def test_a_cost_that_cannot_be_read_is_unknown():
    assert WHOLE.passes("one run a month") is None and WHOLE.seconds("3 forward passes a moon") is None
    assert WHOLE.passes("26 forward passes a feature (permutations x (2 + 1))") == (26 * 64, 0)
    assert WHOLE.seconds("1 gradient and 1 forward pass a token") == 1.5 + 5 * 0.5


FEWER = {"kernel_shap", "occlusion"}
"""Methods that take fewer passes where there are few features, or where windows do not fit."""

CASES = {
    "image": (image_net, lambda: torch.rand(1, 1, 8, 8)),
    "table": (table_net, lambda: torch.rand(1, 5)),
    "text": (text_net, lambda: torch.randint(0, 9, (1, 6))),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_costs_are_the_passes_that_methods_take(case):
    """Rows of the input that the model saw, counted by a hook of torch; a method may take a few more than it says."""
    build, draw = CASES[case]
    model, x = build(), draw()
    fit = fit_of(model, x, target=0)
    table = Lens(model).saliency.methods(for_input=x, target=0)
    rows = []
    model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    for name in table:
        if name in ("auto", "layer_conductance", "internal_influence", "neuron_conductance"):
            continue
        rows.clear()
        Lens(model).saliency(x, target=0, method=name)
        expected = sum(fit.passes(table[name][1]))
        least = 0 if name in FEWER else expected * 0.6 - 2
        most = 40 * expected if "or more" in table[name][1] or name == "xrai" else 1.3 * expected + 64
        assert least <= sum(rows) <= most, (name, sum(rows), expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_left_out_does_not_run(case):
    build, draw = CASES[case]
    model, x = build(), draw()
    lens = Lens(model)
    table = lens.saliency.methods(for_input=x)
    left = [name for name in METHODS if name not in table]
    assert left and all(any(name in note for note in table.notes[1:]) for name in left)
    for name in set(left) - {
        "guided_backprop",
        "deconvnet",
        "guided_grad_cam",
        "permutation",
    }:  # these warn that they say nothing
        with pytest.raises(LayerLensError):
            lens.saliency(x, target=0, method=name)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_says_what_auto_takes(case):
    build, draw = CASES[case]
    model, x = build(), draw()
    table = Lens(model).saliency.methods(for_input=x)
    found = Lens(model).saliency(x, method="auto")
    taken = found.method.partition(",")[0]  # relevance says its rulebook
    assert table.notes[0].startswith(f'auto takes method="{taken}"')
    baseline = f", baseline {found.settings.get('baseline')}"  # known once it has run
    assert found.settings["chosen"].replace(baseline, "") in table.notes[0]
    assert list(table)[:2] == ["auto", taken]


def test_without_a_gradient_only_methods_of_forward_passes_are_left():
    fit = fit_of(nn.Sequential(nn.Linear(4, 4), _Step(), nn.Linear(4, 2)), torch.rand(2, 4))
    assert not fit.differentiable and fit.lacks(METHODS["gradient"]) == "a gradient"
    assert fit.lacks(METHODS["kernel_shap"]) == ""


class _Step(nn.Module):
    def forward(self, x):
        return (x > 0).float()


def test_the_model_stays_as_it_was_and_the_table_shows_itself():
    model, x = image_net().train(), torch.rand(2, 1, 8, 8)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    table = Lens(model).saliency.methods(for_input=x)
    assert model.training and all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert "permutation" in table, "there are two samples"
    text, page = repr(table), table._repr_html_()
    assert "auto takes" in text and "time" in text.splitlines()[0] and "auto takes" in page
    assert max(map(len, text.splitlines()[: len(table)])) < 200


def test_sensitivity_has_no_methods_for_an_input():
    lens = Lens(table_net())
    assert len(lens.sensitivity.methods()) > 3
    with pytest.raises(OptionError, match="takes no input"):
        lens.sensitivity.methods(for_input=torch.rand(1, 5))
    assert len(layerlens.saliency.methods()) == len(METHODS)
