"""Conservation and the ledger, on every case."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from layerlens import relevance
from layerlens.analyzers.relevance.book import Bookkeeper
from tests.cases import CASES, double, normal, zero_additive

NOISE = {"vae"}  # adds random noise on purpose: an additive constant that zero_additive cannot remove

SINGLE = {"hf_llama", "hf_llava"}  # their norms run in float32


@pytest.mark.parametrize("rules", ["epsilon", "attn"])
def test_the_ledger_accounts_for_the_whole_score(case, rules):
    result = relevance(case.build(), case.example(), target=case.target, rules=rules)
    assert result.ledger.by_sample
    assert float(result.ledger.relative.max()) < 1e-5
    assert result.ledger.score.shape == (2,)


def test_the_residual_vanishes_in_float64(case):
    result = relevance(case.build().double(), double(case.example()), target=case.target)
    assert float(result.ledger.relative.max()) < (1e-5 if case.name in SINGLE else 1e-9)


def test_relevance_is_conserved_when_nothing_is_added(case):
    if case.name in NOISE:
        pytest.xfail("noise is an additive constant")
    result = relevance(zero_additive(case.build()), case.example(), target=case.target, rules="epsilon")
    assert float(result.ledger.gap.max()) < 1e-4


def one_sample(x, row):
    if isinstance(x, dict):
        return {name: one_sample(part, row) for name, part in x.items()}
    return x[row : row + 1] if isinstance(x, torch.Tensor) else x


def test_a_batch_equals_its_samples_one_by_one(case):
    if case.name in NOISE:
        pytest.xfail("the noise of a batch differs from that of its samples")
    model, x = case.build().double(), double(case.example())
    together = relevance(model, x, target=case.target)
    for row in range(2):
        single = (
            {k: v[row : row + 1] if torch.is_tensor(v) else v for k, v in x.items()}
            if isinstance(x, dict)
            else x[row : row + 1]
        )
        if case.name == "early_exit":
            continue  # its route depends on the whole batch
        target = [case.target[row]] if isinstance(case.target, list) else case.target
        alone = relevance(model, single, target=target)
        pairs = [(together.values, alone.values)]
        if isinstance(together.values, dict):
            pairs = [(together.values[name], alone.values[name]) for name in together.values]
        for many, one in pairs:
            torch.testing.assert_close(many[row : row + 1], one, rtol=1e-7, atol=1e-10)
        for part in ("inputs", "additive", "absorbed"):
            torch.testing.assert_close(
                getattr(together.ledger, part)[row], getattr(alone.ledger, part)[0], rtol=1e-6, atol=1e-9
            )


def test_the_ledger_names_the_layer_of_each_constant():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        net[1].running_mean.fill_(0.3)
        net[1].bias.fill_(0.2)
    ledger = relevance(net, normal(2, 3), target=0).ledger
    named = {(layer, source) for layer, source, kind, _ in ledger.table() if kind == "additive"}
    assert named == {("0", "bias"), ("1", "norm shift"), ("1", "running mean"), ("3", "bias")}
    bias = next(entry for entry in ledger.entries if entry.layer == "3")
    torch.testing.assert_close(bias.amount.float(), net[3].bias[0].detach().expand(2))


def test_additive_constants_of_every_form_are_found():
    class Constants(nn.Module):
        def __init__(self):
            super().__init__()
            self.position = nn.Parameter(normal(1, 4, 3))
            self.token = nn.Parameter(normal(1, 1, 3))
            self.register_buffer("offset", normal(3))
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position
            x = 1 - (x * 2 - self.offset) + torch.ones(3)
            x += 0.5
            x = torch.where(x > 0, x, torch.tensor(0.25))
            x = torch.stack([x, torch.full_like(x, 0.1)]).sum(0)
            return self.fc(torch.maximum(x, torch.tensor(0.3)).masked_fill(x > 3, 1.5).mean(1))

    result = relevance(Constants().double(), normal(2, 3, 3).double(), target=1)
    assert float(result.ledger.relative.max()) < 1e-12
    assert float(result.ledger.gap.min()) > 1e-3  # the constants matter here


@pytest.mark.filterwarnings("ignore:samples influence each other")
@pytest.mark.parametrize("samples", [1, 3])
def test_a_constant_of_the_whole_batch_is_spread_evenly(samples):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.shift = nn.Linear(4, 3, bias=False), nn.Parameter(torch.tensor(0.7))

        def forward(self, x):
            h = self.layer(x)
            return h * (h.mean() + self.shift)

    torch.manual_seed(0)
    found = relevance(Scaled().double(), normal(samples, 4).double(), target=0)
    assert float(found.ledger.relative.max()) < 1e-12
    assert found.ledger.by_sample == (samples == 1)


def test_relevance_at_layers_is_conserved_from_cut_to_cut():
    model = zero_additive(CASES["cnn"].build())
    result = relevance(model, CASES["cnn"].example(), target=CASES["cnn"].target, layers=None, rules="epsilon")
    assert result.profile is not None
    sums = {layer: [r.flatten(1).sum(1) for r in calls] for layer, calls in result.layers.items()}
    last = [layer for layer in sums if sums[layer]][-1]
    torch.testing.assert_close(sums[last][-1], result.score, rtol=1e-4, atol=1e-5)
    assert len(result.profile) == sum(len(calls) for calls in result.layers.values())


def test_relevance_at_a_layer_before_an_in_place_relu_is_that_of_its_own_output():
    weights = nn.Linear(3, 5), nn.Linear(5, 2)
    inside = nn.Sequential(weights[0], nn.ReLU(inplace=True), weights[1])
    outside = nn.Sequential(weights[0], nn.ReLU(), weights[1])
    x = normal(2, 3)
    one, other = (relevance(net, x, target=0, layers="0").layers["0"][0] for net in (inside, outside))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_time_major_batch_is_split_by_sample():
    class TimeMajor(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.LSTM(3, 4, num_layers=2, bidirectional=True), nn.Linear(8, 2)

        def forward(self, x):
            return self.fc(self.rnn(x.transpose(0, 1))[0][-1])

    torch.manual_seed(0)
    for time in (2, 3, 4):  # as long as the batch, and not
        result = relevance(TimeMajor(), normal(2, time, 3), target=1)
        assert result.ledger.by_sample
        assert float(result.ledger.relative.max()) < 1e-5


def halves(w, x):
    h = w[0](x)
    h[:, 0] = 0.7
    h[:, :, 1] += 0.3
    h[:, 2].clamp_(min=0.1)
    return w[1](h).mean(1)


def into_a_constant(w, x):
    out = torch.ones(2, 4, 6, dtype=x.dtype)
    for step in range(3):
        out[:, step] = w[step](x[:, step]).tanh()
    return w[3](out).mean(1)


def activations_of_parts(w, x):
    h = w[0](x)
    F.elu(h[:, 1:], 1.0, True)
    F.hardtanh(h[:, :1], -0.2, 0.2, inplace=True)
    h[..., :2] -= 1
    return w[1](h).mean(1)


def filled(w, x):
    h = w[0](x)
    h[:, 0].fill_(0.5)
    h[:, 1].zero_()
    h[:, 2].masked_fill_(h[:, 2] < 0, -0.1)
    h.view(2, -1).mul_(0.5)
    h.transpose(1, 2).add_(2.0)
    return w[1](h).mean(1)


def checkpointed(w, x):
    return w[1](checkpoint(lambda x: F.gelu(w[0](x)), x, use_reentrant=False)).mean(1)


@pytest.mark.parametrize("rules", ["epsilon", "attn", "epsilon_plus"])
@pytest.mark.parametrize("body", [halves, into_a_constant, activations_of_parts, filled, checkpointed])
def test_writes_into_views_and_checkpoints_are_followed(body, rules):
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.w = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

        def forward(self, x):
            return body(self.w, x)

    result = relevance(Writing().double(), normal(2, 4, 6).double(), target=1, rules=rules)
    assert float(result.ledger.relative.max()) < 1e-12
    assert float(result.values.abs().max()) > 0


@pytest.mark.parametrize("act", [F.relu, F.elu, F.silu, F.hardtanh, F.mish, F.leaky_relu, F.relu6, F.hardswish])
def test_an_activation_in_place_on_tokens_is_that_out_of_place(act):
    """A linear layer on many rows returns a view: writing into it hides the activation from autograd's graph."""

    class Net(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            torch.manual_seed(1)
            self.a, self.b, self.inplace = nn.Linear(5, 4), nn.Linear(4, 2), inplace

        def forward(self, x):
            return self.b(act(self.a(x), inplace=self.inplace)).mean(1)

    x = normal(2, 3, 5)
    for rules in ("epsilon", "epsilon_plus"):
        plain, inside = (relevance(Net(inplace), x, target=0, rules=rules) for inplace in (False, True))
        torch.testing.assert_close(inside.values, plain.values)
        assert float(inside.ledger.relative.max()) < 1e-6


def test_one_sample_that_rounds_badly_does_not_blur_the_others():
    """Bookkeeping by sample is given up when the batch is out of place, not when float32 rounds in one sample."""
    keeper = Bookkeeper(4, [], [])
    score = torch.ones(4)
    keeper.add("input", 0, "x", torch.tensor([[1.0], [1.0], [1.0 - 3e-5], [1.0]]))
    ledger = keeper.ledger(score)
    assert ledger.by_sample and float(ledger.relative[2]) > 2e-5 and float(ledger.relative[0]) == 0


@pytest.mark.parametrize("batch", [2, 5])
def test_a_batch_that_is_out_of_place_is_reported(batch):
    keeper = Bookkeeper(batch, [], [])
    score = torch.arange(1.0, batch + 1)
    keeper.add("input", 0, "x", score.flip(0)[:, None])
    ledger = keeper.ledger(score)
    assert not ledger.by_sample and float(ledger.relative.max()) < 1e-6
