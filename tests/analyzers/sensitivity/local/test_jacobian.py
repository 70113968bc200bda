"""Jacobian norms against dense Jacobians and closed forms, in float64."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from layerlens import errors
from layerlens.analyzers.sensitivity import jacobian
from layerlens.probes.run import capture
from tests.cases import CASES, normal


def dense_norms(model, x, layer):
    """||J||_F of each sample, from the whole Jacobian."""

    def output(sample):
        return capture_with_grad(model, sample.unsqueeze(0), layer).flatten()

    return torch.stack([torch.autograd.functional.jacobian(output, sample).norm() for sample in x])


def capture_with_grad(model, x, layer):
    found = []
    handle = model.get_submodule(layer).register_forward_hook(
        lambda module, args, out: found.append((out[0] if isinstance(out, tuple) else out).clone())
    )
    model(x)
    handle.remove()
    return found[0]


def test_a_linear_net_has_the_norm_of_its_matrix_product():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)).double()
    profile = jacobian(net, normal(2, 6).double(), relative=False, draws=400)
    product = torch.eye(6).double()
    for row, layer in enumerate(net):
        product = layer.weight @ product
        assert abs(profile.values[row] - product.norm()) < 4 * profile.error[row]
        assert 0 < profile.error[row] < 0.1 * profile.values[row]


@pytest.mark.parametrize("name, layer", [("mlp", None), ("cnn", None), ("lstm", "rnn"), ("hf_vit", "vit.layernorm")])
def test_values_agree_with_the_dense_jacobian(name, layer):
    case = CASES[name]
    model, x = case.build().double(), case.example()
    if isinstance(x, dict):
        (x,) = x.values()
    x = x.double()
    record = capture(model, x)
    layers = [layer] if layer else [path for path in record if len(record.calls(path)) == 1][:6]
    profile = jacobian(model, x, layers, relative=False, draws=300)
    for row, name in enumerate(profile.layers):
        expected = dense_norms(model, x, name).mean()
        assert abs(profile.values[row] - expected) < 4 * profile.error[row] + 1e-9, name


@pytest.mark.parametrize(
    "name", ["mlp", "depthwise", "encoder", "hf_bert", "hf_gpt2", "hf_vit", "lstm", "gru", "video"]
)
def test_the_two_routes_agree(name):
    case = CASES[name]
    model = case.build().double()
    x = case.example()
    x = (
        {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in x.items()}
        if isinstance(x, dict)
        else x
    )
    x = x.double() if torch.is_tensor(x) and x.is_floating_point() else x
    exact = jacobian(model, x, draws=3)
    steps = jacobian(model, x, draws=3, route="finite_differences")
    assert "dual numbers" in exact.method and "finite differences" in steps.method
    assert exact.layers == steps.layers
    torch.testing.assert_close(exact.values, steps.values, rtol=2e-3, atol=1e-6)


def test_in_place_relu_does_not_touch_the_layer_before_it():
    linear = nn.Linear(4, 6)
    inside, outside = (nn.Sequential(linear, nn.ReLU(inplace=inplace)) for inplace in (True, False))
    one, other = (jacobian(net, normal(2, 4), "0") for net in (inside, outside))
    torch.testing.assert_close(one.values, other.values, rtol=0, atol=0)


def test_a_batch_is_the_mean_of_its_samples():
    model, x = CASES["cnn"].build().double(), CASES["cnn"].example().double()
    together = jacobian(model, x)
    alone = [jacobian(model, x[row : row + 1]) for row in range(2)]
    torch.testing.assert_close(together.values, torch.stack([profile.values for profile in alone]).mean(0))


def test_a_layer_behind_a_detach_is_not_silently_zero():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(torch.from_numpy(self.a(x).detach().numpy()))

    profile = jacobian(Cut().double(), normal(2, 3).double())
    assert "finite differences" in profile.method
    assert bool((profile.values > 0).all())
    with pytest.raises(errors.OptionError, match=r"route='forward_ad' is impossible"):
        jacobian(Cut(), normal(2, 3), route="forward_ad")


def test_the_null_differs_and_leaves_the_model_alone():
    model, x = CASES["mlp"].build(), CASES["mlp"].example()
    bits = [parameter.clone() for parameter in model.parameters()]
    profile = jacobian(model, x, null=True)
    assert profile.null is not None and profile.null.shape == profile.values.shape
    assert not torch.allclose(profile.null, profile.values)
    assert all(torch.equal(a, b) for a, b in zip(bits, model.parameters(), strict=True))


def test_bad_options_are_named():
    model, x = CASES["mlp"].build(), CASES["mlp"].example()
    with pytest.raises(errors.OptionError, match="draws must be a whole number of at least 1, got 0"):
        jacobian(model, x, draws=0)
    with pytest.raises(errors.OptionError, match="unknown route 'dual'"):
        jacobian(model, x, route="dual")
    with pytest.warns(UserWarning, match="one draw gives no standard error"):
        assert jacobian(model, x, draws=1).error is None


FIRST_USE = """
import warnings
import torch
from layerlens import jacobian
warnings.simplefilter("error")
jacobian(torch.nn.Linear(3, 2), torch.ones(2, 3), route="forward_ad", draws=2, relative=False)
"""


def test_the_first_use_of_dual_numbers_does_not_warn():
    done = subprocess.run([sys.executable, "-c", FIRST_USE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
