"""Features of a basis: the codes, the error, what each adds to a score, and what they respond to."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from layerlens import Basis, Lens, basis, feature_effects, neuron, top_inputs
from layerlens.errors import InputError, OptionError, TargetError

pytest.importorskip("sklearn")


class SAE(nn.Module):
    """A sparse autoencoder with biases, and dropout that must not act; `several` returns what overcomplete does."""

    def __init__(self, units, features, several=False):
        super().__init__()
        self.enc, self.dec, self.drop = nn.Linear(units, features), nn.Linear(features, units), nn.Dropout(0.5)
        self.several = several

    def encode(self, x):
        before = self.enc(self.drop(x))
        return (before, torch.relu(before)) if self.several else torch.relu(before)

    def decode(self, codes):
        return self.dec(codes)


class Normed(SAE):
    """Keeps the norm of the rows between encode and decode, and forgets it then, as SAELens does."""

    def encode(self, x):
        self.norm = x.norm(dim=1, keepdim=True)
        return super().encode(x / self.norm)

    def decode(self, codes):
        made = super().decode(codes) * self.norm
        del self.norm
        return made


def picture_net(last=2):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, last)
    ).double()


class Tokens(nn.Module):
    """Units last, as in a transformer."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x)).mean(dim=1))


def cases():
    torch.manual_seed(1)
    net = picture_net()
    x = torch.randn(5, 2, 5, 5, dtype=torch.float64)
    tokens = Tokens().double()
    texts = torch.randn(5, 4, 3, dtype=torch.float64)
    return {
        "pictures": (net, x, "1", -3, net[:2], net[2:]),
        "tokens": (tokens, texts, "inner", -1, tokens.inner, lambda h: tokens.head(torch.tanh(h).mean(dim=1))),
    }


@pytest.mark.parametrize("case", ["pictures", "tokens"])
@pytest.mark.parametrize("kind", ["pca", "sae", "several"])
def test_effects_are_those_by_hand_and_close(case, kind):
    net, x, layer, axis, before, after = cases()[case]
    if kind == "pca":
        found = basis(net, x, layer, features=3)
        dec = found.decode_last(torch.eye(3).double(), torch.zeros(1, 6)) - found.decode_last(
            torch.zeros(3, 3).double(), torch.zeros(1, 6)
        )
        bias = found.decode_last(torch.zeros(1, 3).double(), torch.zeros(1, 6))[0]
    else:
        torch.manual_seed(2)
        sae = SAE(6, 9, kind == "several").double().train()
        found, dec, bias = Basis(layer, sae), sae.dec.weight.T, sae.dec.bias
        flags = copy.deepcopy(sae.state_dict()), [one.training for one in sae.modules()]
    hidden = before(x).detach().requires_grad_()
    score = after(hidden)[:, 1]
    (slope,) = torch.autograd.grad(score.sum(), hidden)
    h, g = hidden.detach().movedim(axis, -1), slope.movedim(axis, -1)
    codes = (h - bias) @ dec.T if kind == "pca" else torch.relu(h @ sae.enc.weight.T + sae.enc.bias)
    over = tuple(range(1, h.ndim - 1))
    by_feature = torch.stack([(codes[..., k, None] * dec[k] * g).sum(-1).sum(over) for k in range(len(dec))])
    rest = [(bias * g).sum(-1).sum(over), ((h - codes @ dec - bias) * g).sum(-1).sum(over)]
    expected = torch.cat([by_feature, torch.stack(rest)]).detach()
    made = feature_effects(net, x, found, target=1)
    torch.testing.assert_close(made.checks["per sample"], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(made.checks["layer"], (h * g).flatten(1).sum(1).detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(made.checks["per sample"].sum(dim=0), made.checks["layer"], rtol=0, atol=1e-12)
    assert made.items[-2:] == ("constant", "error") and len(made.items) == len(dec) + 2

    taken = feature_effects(net, x, found, target=1, by="ablation").checks["per sample"]
    parts = [codes[..., k, None] * dec[k] for k in range(len(dec))] + [bias, h - codes @ dec - bias]
    changes = [(after((h - part).movedim(-1, axis))[:, 1] - score).detach() for part in parts]
    torch.testing.assert_close(taken, torch.stack(changes), rtol=0, atol=1e-12)

    units = before(x).detach().movedim(axis, 1)
    torch.testing.assert_close(found.codes(units), codes.movedim(-1, 1).detach())
    torch.testing.assert_close(found.error(units), (h - codes @ dec - bias).movedim(-1, 1).detach())
    if kind != "pca":
        assert [one.training for one in sae.modules()] == flags[1]
        assert all(torch.equal(one, two) for one, two in zip(sae.state_dict().values(), flags[0].values(), strict=True))
        assert all(one.requires_grad and one.grad is None for one in sae.parameters())


def test_a_feature_is_a_target_of_saliency_and_relevance():
    net, x, layer, *_ = cases()["pictures"]
    found = basis(net, x, layer, features=3)
    leaf = x.clone().requires_grad_()
    direction = found._encode(torch.eye(6).double()) - found._encode(torch.zeros(1, 6).double())
    code = torch.einsum("buhw,u->bhw", net[:2](leaf), direction[:, 2])
    (expected,) = torch.autograd.grad(code.mean(dim=(1, 2)).sum(), leaf)
    lens = Lens(net)
    made = lens.saliency(x, target=found.feature(2), method="gradient")
    torch.testing.assert_close(made.values, expected)
    assert made.target == "feature 2 of 1"
    assert found.feature("feature 2").label == made.target
    score = lens.relevance(x, target=found.feature(2, place=(0, 0))).score
    torch.testing.assert_close(score, found.codes(net[:2](x))[:, 2, 0, 0].detach())
    with pytest.raises(TargetError, match="there is no feature 3"):
        lens.saliency(x, target=found.feature(3), method="gradient")


def test_top_inputs_of_a_feature_are_those_of_its_codes():
    net, x, layer, *_ = cases()["pictures"]
    found = basis(net, x, layer, features=3)
    codes = found.codes(net[:2](x)).detach()
    made = Lens(net).top_inputs(x, found, units=[2, 0], by="activation", count=2)
    best = codes.amax(dim=(2, 3)).sort(dim=0, descending=True)
    torch.testing.assert_close(made.values, best.values[:2, [2, 0]].T)
    assert made.index.tolist() == best.indices[:2, [2, 0]].T.tolist() and made.regions.shape[:2] == (2, 2)
    with pytest.raises(OptionError, match="by='activation'"):
        top_inputs(net, x, found)
    by_target = top_inputs(net, x, "0", by="relevance", target=found.feature(2), regions=False)
    assert by_target.target == "feature 2 of 1"


def test_nmf_codes_are_non_negative_least_squares_and_differentiable():
    from scipy.optimize import nnls

    net, x, *_ = cases()["pictures"]
    found = Lens(net).basis(x, "1", method="nmf", features=3)
    rows = net[:2](x).detach().movedim(1, -1).reshape(-1, 6)
    parts = found.decode_last(torch.eye(3).double(), torch.zeros(1, 6)).numpy()
    expected = np.stack([nnls(parts.T, row)[0] for row in rows.numpy()])
    np.testing.assert_allclose(found.encode_last(rows).numpy(), expected, atol=1e-6)
    made = feature_effects(net, x, found, target=0)
    torch.testing.assert_close(made.checks["per sample"].sum(dim=0), made.checks["layer"], rtol=0, atol=1e-12)
    assert Lens(net).saliency(x, target=found.feature(1), method="gradient").values.any()
    with pytest.raises(InputError, match="not negative, and layer '0' has -"):
        basis(net, x, "0", method="nmf", features=3)


def test_an_encoder_that_keeps_a_norm_until_it_decodes():
    net, x, *_ = cases()["pictures"]
    sae = Normed(6, 9).double().eval()
    found, hidden = Basis("1", sae), net[:2](x).detach() + 0.1
    rows = hidden.movedim(1, -1).reshape(-1, 6)
    expected = (rows - sae.decode(sae.encode(rows))).detach()
    torch.testing.assert_close(found.error(hidden).movedim(1, -1).reshape(-1, 6).detach(), expected)
    shifted = nn.Sequential(*net[:2], Plus(), *net[2:])
    found = Basis("2", sae)
    made = feature_effects(shifted, x, found, target=0)
    torch.testing.assert_close(made.checks["per sample"].sum(dim=0), made.checks["layer"], rtol=0, atol=1e-12)
    taken = feature_effects(shifted, x, found, target=0, by="ablation").checks["per sample"]
    without = sae.decode(sae.encode(rows)).reshape(5, 3, 3, 6).movedim(-1, 1)
    torch.testing.assert_close(taken[-1], (net[2:](without) - net[2:](hidden))[:, 0].detach())
    assert not hasattr(sae, "norm")


class Plus(nn.Module):
    def forward(self, x):
        return x + 0.1


def test_what_is_refused():
    net, x, *_ = cases()["pictures"]
    with pytest.raises(OptionError, match="at most 6"):
        basis(net, x, "1", features=7)
    with pytest.raises(OptionError, match="both functions"):
        Basis("1", nn.Linear(2, 2))
    with pytest.raises(OptionError, match="not both"):
        Basis("1", SAE(6, 2), encode=len)
    with pytest.raises(InputError, match="encode of Basis"):
        feature_effects(net, x, Basis("1", SAE(5, 2).double()), target=0)
    with pytest.raises(InputError, match="decode returned 2 units"):
        feature_effects(net, x, Basis("1", encode=lambda h: h, decode=lambda c: c[:, :2]), target=0)
    with pytest.raises(InputError, match="1 names are given"):
        feature_effects(net, x, Basis("1", SAE(6, 2).double(), features=["one"]), target=0)
    torch.testing.assert_close(neuron("1", 0)(net[:2](x), at=("1", 0)), net[:2](x)[:, 0].mean(dim=(1, 2)))


def test_a_planted_direction_is_the_first_component():
    sklearn = pytest.importorskip("sklearn.datasets")
    x = torch.from_numpy(sklearn.load_digits().data[:300] / 16)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 16), nn.Identity(), nn.Linear(16, 10)).double()
    planted = torch.nn.functional.normalize(torch.randn(16).double(), dim=0)
    x = torch.cat([x, (torch.arange(300) % 2).double().unsqueeze(1)], dim=1)
    wide = nn.Linear(65, 16).double()
    wide.weight.data = torch.cat([net[0].weight.data, 6 * planted.unsqueeze(1)], dim=1)
    shown = nn.Sequential(wide, *net[1:])
    found = basis(shown, x, "1", features=4)
    direction = found.decode_last(torch.eye(4).double(), torch.zeros(1, 16))[0] - found.decode_last(
        torch.zeros(1, 4).double(), torch.zeros(1, 16)
    )
    assert float(torch.cosine_similarity(direction, planted[None]).abs()) > 0.99
    codes = found.codes(shown[:2](x))[:, 0].detach()
    halves = codes[::2], codes[1::2]
    assert float(halves[0].max()) < float(halves[1].min()) or float(halves[0].min()) > float(halves[1].max())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(torch.relu(self.inner(torch.relu(self.inner(x)))))


def test_a_call_of_a_layer_that_runs_twice():
    torch.manual_seed(0)
    net, x = Twice().double(), torch.randn(9, 3, dtype=torch.float64)
    with pytest.raises(InputError, match="name one of 'inner#0', 'inner#1'"):
        basis(net, x, "inner", features=2)
    calls = net.inner(x), net.inner(torch.relu(net.inner(x)))
    for number, hidden in enumerate(calls):
        found = basis(net, x, f"inner#{number}", features=2)
        assert found.layer == f"inner#{number}"
        codes = found.codes(hidden.detach())
        top = top_inputs(net, x, found, by="activation", count=1, regions=False)
        torch.testing.assert_close(top.values[:, 0], codes.amax(dim=0))
        score = Lens(net).saliency(x, target=found.feature(1), method="gradient").score
        torch.testing.assert_close(score, codes[:, 1])
        effects = feature_effects(net, x, found, target=0).checks
        torch.testing.assert_close(effects["per sample"].sum(dim=0), effects["layer"])
    with pytest.raises(OptionError, match="call=2 is one too many"):
        found.feature(0, call=2)
    with pytest.raises(OptionError, match="basis is a Basis"):
        feature_effects(net, x, SAE(3, 2))
