"""What is known to go wrong with derivatives of real models, each as a small model: none may pass in silence."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from layerlens import errors
from layerlens.analyzers.sensitivity import jacobian, lipschitz
from layerlens.analyzers.sensitivity.local.directional_derivatives import _ROUTES, _SHARED
from tests.analyzers.sensitivity.local.test_jacobian import dense_norms
from tests.cases import CASES, double, normal


def agrees(model, x, layer, draws=300):
    """Whether the profile of a layer is its dense Jacobian, within its standard error."""
    profile = jacobian(model, x, layer, relative=False, draws=draws)
    with sdpa_kernel(SDPBackend.MATH):
        expected = dense_norms(model.eval(), x, layer).mean()
    assert abs(profile.values[0] - expected) < 4 * profile.error[0] + 1e-9
    return profile


class Block(nn.Module):
    def __init__(self, attend):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.attend = attend

    def forward(self, x):
        q, k, v = (part(x).unflatten(2, (2, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))


def test_fused_attention_takes_the_plain_kernel_and_says_so():
    torch.manual_seed(0)
    fused = Block(nn.functional.scaled_dot_product_attention).double().eval()
    profile = agrees(fused, normal(2, 5, 8).double(), "out")
    assert "plain attention" in profile.method


def test_a_model_that_insists_on_the_fused_kernel_takes_finite_differences_and_says_why():
    def fused_only(q, k, v):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return nn.functional.scaled_dot_product_attention(q, k, v)

    torch.manual_seed(0)
    model, x = Block(fused_only).double().eval(), normal(2, 5, 8).double()
    profile = jacobian(model, x, "out", draws=3)
    assert "finite differences" in profile.method and "no dual numbers:" in profile.method
    plain = Block(nn.functional.scaled_dot_product_attention).double().eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(profile.values, jacobian(plain, x, "out", draws=3).values, rtol=1e-5, atol=0)
    sigma = lipschitz(model, x, "out")
    assert "finite differences" in sigma.method
    torch.testing.assert_close(sigma.values, lipschitz(plain, x, "out").values, rtol=1e-4, atol=0)


def test_a_fused_lstm_takes_the_plain_kernel():
    torch.manual_seed(0)
    model, x = nn.LSTM(4, 6, batch_first=True).eval(), normal(2, 5, 4)
    fused = jacobian(model, x, draws=4)
    assert "plain attention and recurrent kernels" in fused.method
    exact = jacobian(model.double(), x.double(), draws=4)
    torch.testing.assert_close(fused.values, exact.values, rtol=1e-4, atol=0)


def test_multihead_attention_and_its_fused_encoder_path():
    torch.manual_seed(0)

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.mix(x, x, x)[0]

    agrees(Mixed().double().eval(), normal(2, 4, 8).double(), "mix")
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).double()
    with contextlib.suppress(UserWarning):
        encoder.enable_nested_tensor = False
    agrees(encoder.eval(), normal(2, 4, 8).double(), "layers.0")


def test_batch_norm_in_train_mode_is_measured_in_eval_mode_and_given_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU()).double()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    x = normal(3, 4).double()
    trained = jacobian(model.train(), x, "1", draws=4)
    assert model[1].training and int(model[1].num_batches_tracked) == 0
    torch.testing.assert_close(trained.values, jacobian(model.eval(), x, "1", draws=4).values, rtol=0, atol=0)


class Branching(nn.Module):
    """Control flow by `.item()`, as of an adaptive model."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = self.a(x)
        for _ in range(int(h.abs().max().item() > 0.1) + 1):
            h = torch.tanh(h)
        return self.b(h * float(h.mean() < 10))


def test_control_flow_by_item_works():
    torch.manual_seed(0)
    profile = agrees(Branching().double().eval(), normal(2, 4).double(), "b")
    assert "dual numbers" in profile.method


def test_what_probes_cannot_share_runs_on_copies_of_the_batch():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 5)
            self.register_buffer("seen", torch.zeros(2, 5))

        def forward(self, x):
            h = self.a(x)
            self.seen[:] = h[:2]  # a batch of tangents cannot be written into it
            return torch.tanh(h) + self.seen.sum() * 0

    torch.manual_seed(0)
    model, x = Keeps(), normal(2, 4)
    profile = jacobian(model, x, "a")
    assert "on copies of the batch" in profile.method
    torch.testing.assert_close(profile.values, jacobian(nn.Sequential(model.a), x, "0").values)


@pytest.mark.parametrize("name", ["cnn", "depthwise", "hf_bert", "hf_gpt2", "early_exit", "gan", "nested"])
def test_sharing_gives_the_numbers_of_copies(name, monkeypatch):
    case = CASES[name]
    model, x = case.build().double(), double(case.example())
    shared = jacobian(model, x, draws=3)
    kept = tuple(row for row in _ROUTES if row[3] not in _SHARED)
    monkeypatch.setattr("layerlens.analyzers.sensitivity.local.directional_derivatives._ROUTES", kept)
    copies = jacobian(model, x, draws=3)
    assert "copies" in copies.method and "copies" not in shared.method and shared.layers == copies.layers
    torch.testing.assert_close(shared.values, copies.values, rtol=1e-10, atol=0)
    torch.testing.assert_close(shared.checks["per sample"], copies.checks["per sample"], rtol=1e-10, atol=0)


def test_an_in_place_operation_after_a_layer_does_not_reach_its_tangent():
    """The ReLU writes into the tensor and into its tangent."""
    linear = nn.Linear(4, 6)
    for measure in (jacobian, lipschitz):
        inside, outside = (nn.Sequential(linear, nn.ReLU(inplace=inplace)) for inplace in (True, False))
        torch.testing.assert_close(measure(inside, normal(2, 4)).values, measure(outside, normal(2, 4)).values)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("measure", [jacobian, lipschitz])
def test_the_callers_grad_mode_changes_nothing(measure, mode):
    case = CASES["cnn"]
    model, x = case.build(), case.example()
    expected = measure(model, x, "conv2")
    with mode():
        found = measure(model, case.example(), "conv2")
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=0)
    assert bool((found.values > 0).all()) and found.method == expected.method


def test_ties_of_a_max_pool_part_the_routes_and_neither_is_wrong():
    """At a tie the dual number follows the first of the equal values, a step to both sides the mean of two."""
    model, x = nn.Sequential(nn.MaxPool1d(2)).double(), torch.ones(1, 1, 40).double()
    dual = jacobian(model, x, relative=False, draws=200)
    steps = jacobian(model, x, relative=False, draws=200, route="finite_differences")
    assert abs(dual.values[0] - 20**0.5) < 4 * dual.error[0]  # one value of each pair
    assert float(steps.values[0]) < 0.9 * float(dual.values[0])  # (max - min) / 2 of two
    apart = x + 0.1 * torch.arange(40)
    pair = (jacobian(model, apart, draws=5, route=route).values for route in ("forward_ad", "finite_differences"))
    torch.testing.assert_close(*pair, rtol=1e-6, atol=0)


def test_short_numbers_have_no_differences_and_say_so():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 4)

        def forward(self, x):
            return self.a(x.detach() * 2)

    model = Cut().bfloat16()
    with pytest.raises(errors.OptionError, match=r"differences in bfloat16 are rounding noise, use model\.float\(\)"):
        jacobian(model, normal(2, 3).bfloat16())
