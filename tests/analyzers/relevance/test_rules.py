"""Each row of the op table by itself: relevance in, less what is absorbed, is relevance out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerlens import Rulebook, errors, relevance
from tests.cases import normal


class Apply(nn.Module):
    """A function of a signed linear map of the input, summed with weights."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = nn.Linear(4, 6), nn.Linear(6, 2)
        self.function = function

    def forward(self, x):
        return self.after(self.function(self.before(x)))


ELEMENTWISE = {
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu by hand": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0)))),
    "gelu by erf": lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "silu": F.silu,
    "swish by hand": lambda x: x * torch.sigmoid(x),
    "mish": F.mish,
    "elu": F.elu,
    "elu in place": lambda x: F.elu(x, inplace=True),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, alpha=0.7),
    "celu in place": lambda x: F.celu(x, alpha=0.7, inplace=True),
    "relu": F.relu,
    "relu in place": lambda x: F.relu(x, inplace=True),
    "leaky relu": F.leaky_relu,
    "prelu": lambda x: F.prelu(x, torch.tensor([0.2], dtype=x.dtype)),
    "relu6": lambda x: F.relu6(4 * x),
    "hardtanh": lambda x: F.hardtanh(2 * x),
    "hardtanh above 0": lambda x: F.hardtanh(x, 0.5, 1.5),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "softplus": F.softplus,
    "softplus beta": lambda x: F.softplus(x, beta=3.0),
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "tanhshrink": F.tanhshrink,
    "softsign": F.softsign,
    "log sigmoid": F.logsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp above 0": lambda x: x.clamp(0.1, 0.5),
    "clamp by tensor": lambda x: torch.clamp(x, torch.full_like(x, -0.2), torch.full_like(x, 0.3)),
    "clamp min": lambda x: x.clamp_min(0),
    "square": torch.square,
    "cube": lambda x: x**3,
    "power 0": lambda x: x**0,
    "sin": torch.sin,
    "cos": torch.cos,
    "atan": torch.atan,
    "log1p": lambda x: torch.log1p(x.abs()),
    "product with itself": lambda x: x * x,
    "glu": lambda x: F.glu(torch.cat([x, x.flip(1)], 1)),
    "gate": lambda x: x * torch.sigmoid(x.flip(1)),
    "gate by hardsigmoid": lambda x: x * F.hardsigmoid(x.flip(1)),
    "division by a norm": lambda x: x / x.norm(dim=1, keepdim=True),
    "normalize": F.normalize,
    "log softmax": lambda x: F.log_softmax(x, dim=1),
    "softmax as output": lambda x: F.softmax(x, dim=1),
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True).expand(-1, 6),
    "max": lambda x: x.amax(1, keepdim=True).expand(-1, 6),
    "sort": lambda x: x.sort(1).values,
    "topk": lambda x: F.pad(x.topk(3).values, (0, 3)),
    "pad with a constant": lambda x: F.pad(x[:, :4], (1, 1), value=0.7),
    "cumsum": lambda x: x.cumsum(1),
    "mean removed": lambda x: x - x.mean(1, keepdim=True),
    "roll": lambda x: x.roll(2, 1),
    "einsum": lambda x: torch.einsum("bi,bj->bi", x, x),
    "outer": lambda x: (x.unsqueeze(1) @ x.unsqueeze(2)).squeeze(2).expand(-1, 6),
    "addcmul": lambda x: torch.addcmul(x, x, x.flip(1)),
    "layer norm": lambda x: F.layer_norm(x, (6,), torch.arange(6.0, dtype=x.dtype), torch.ones(6, dtype=x.dtype)),
    "rms norm": lambda x: F.rms_norm(x, (6,), torch.arange(6.0, dtype=x.dtype)),
    "rms norm by hand": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    "group norm": lambda x: F.group_norm(x, 2, torch.arange(6.0, dtype=x.dtype), torch.ones(6, dtype=x.dtype)),
    "instance norm": lambda x: F.instance_norm(x.reshape(-1, 2, 3)).reshape(-1, 6),
    "local response norm": lambda x: F.local_response_norm(x.unsqueeze(2), 3).squeeze(2),
    "lerp": lambda x: torch.lerp(x, x.flip(1), 0.3),
    "in-place slice": lambda x: _write(x),
    "interpolate": lambda x: F.interpolate(x.unsqueeze(1), scale_factor=2).squeeze(1)[:, :6],
    "max pool": lambda x: F.pad(F.max_pool1d(x, 2), (0, 3)),
    "adaptive pool": lambda x: F.pad(F.adaptive_avg_pool1d(x, 4), (0, 2)),
}


def _write(x):
    out = torch.zeros_like(x)
    out[:, :3] = x[:, 3:]
    out[:, 3:] += x[:, :3] * 2
    return out


@pytest.mark.parametrize("product", ["gate", "uniform"])
@pytest.mark.parametrize("name", list(ELEMENTWISE))
def test_every_operation_keeps_the_books(name, product):
    x = torch.cat([normal(3, 4), torch.zeros(1, 4)]).double() * 2
    result = relevance(Apply(ELEMENTWISE[name]).double(), x, target=1, rules=Rulebook("test", product=product))
    assert torch.isfinite(result.tensor).all()
    assert float(result.ledger.relative.max()) < 1e-9, result.ledger.table()


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Conv1d(3, 4, 3, padding=1, groups=1), (2, 3, 8)),
        (nn.Conv2d(4, 8, 3, stride=2, dilation=2, groups=2), (2, 4, 9, 9)),
        (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
        (nn.ConvTranspose1d(3, 4, 3, stride=2), (2, 3, 5)),
        (nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), (2, 3, 5, 5)),
        (nn.ConvTranspose3d(2, 3, 2), (2, 2, 3, 3, 3)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 6, 6)),
        (nn.Conv2d(3, 4, 3, padding="same"), (2, 3, 6, 6)),
        (nn.BatchNorm2d(3), (2, 3, 4, 4)),
        (nn.InstanceNorm2d(3, affine=True), (2, 3, 4, 4)),
        (nn.GroupNorm(2, 4), (2, 4, 3, 3)),
        (nn.LayerNorm([3, 4]), (2, 3, 4)),
        (nn.Linear(4, 3), (2, 5, 4)),
        (nn.AvgPool2d(2), (2, 3, 4, 4)),
        (nn.MaxPool2d(2), (2, 3, 4, 4)),
        (nn.AdaptiveMaxPool2d(2), (2, 3, 5, 5)),
        (nn.LPPool2d(2, 2), (2, 3, 4, 4)),
        (nn.FractionalMaxPool2d(2, output_size=2), (2, 3, 5, 5)),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 4, 4)),
        (nn.PixelShuffle(2), (2, 4, 3, 3)),
        (nn.Unfold(2), (2, 3, 4, 4)),
        (nn.MultiheadAttention(4, 2, batch_first=True), (2, 5, 4)),
        (nn.MultiheadAttention(4, 2), (2, 5, 4)),
        (nn.RNN(4, 3, batch_first=True, nonlinearity="relu"), (2, 5, 4)),
        (nn.GRU(4, 3, 2, batch_first=True, bidirectional=True), (2, 5, 4)),
        (nn.LSTM(4, 3, proj_size=2, batch_first=True), (2, 5, 4)),
        (nn.TransformerDecoderLayer(4, 2, 8, batch_first=True), (2, 5, 4)),
        (nn.Bilinear(4, 4, 3), (2, 4)),
    ],
    ids=lambda value: str(value).replace("\n", " ")[:40],
)
def test_layers_keep_the_books(layer, shape):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            if isinstance(layer, nn.MultiheadAttention):
                if not layer.batch_first:
                    x = x.transpose(0, 1)
                out = layer(x, x, x)[0]
                return (out if layer.batch_first else out.transpose(0, 1)).flatten(1).sum(1)
            if isinstance(layer, (nn.TransformerDecoderLayer, nn.Bilinear)):
                return layer(x, x).flatten(1).sum(1)
            out = layer(x)
            return (out[0] if isinstance(out, tuple) else out).square().flatten(1).sum(1)

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
        for buffer in layer.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    x = normal(*shape).double()
    result = relevance(Wrapped().double(), x, target=lambda out: out)
    assert float(result.ledger.relative.max()) < 1e-9, result.ledger.table()


def test_gates_take_nothing_under_the_gate_rule_and_half_under_uniform():
    class Gated(nn.Module):
        def forward(self, signal, gate):
            return (signal * torch.sigmoid(gate)).sum(1)

    x = (normal(2, 3), normal(2, 3, seed=3))
    taken = relevance(Gated(), x, target=lambda out: out)
    assert float(taken.values["1"].abs().max()) == 0
    torch.testing.assert_close(taken.values["0"].sum(1), taken.score)
    shared = relevance(Gated(), x, target=lambda out: out, rules=Rulebook("half", product="uniform"))
    torch.testing.assert_close(shared.values["0"], taken.values["0"] / 2)
    assert float(shared.values["1"].abs().max()) > 0


def test_an_unknown_operation_is_named():
    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 3

        @staticmethod
        def backward(ctx, g):
            return g * 3

    model, x = Apply(Odd.apply), normal(2, 4)
    with pytest.warns(UserWarning, match=r"no relevance rule is known for Odd: the gradient is used instead"):
        assert float(relevance(model, x, target=0).ledger.relative.max()) < 1e-5
    with pytest.raises(errors.UnknownOperation, match="no relevance rule is known for Odd"):
        relevance(model, x, target=0, strict=True)


def test_a_score_that_no_relevance_can_leave_is_refused():
    with pytest.raises(errors.RelevanceError, match="every way to the input leads through Round"):
        relevance(Apply(lambda x: x), normal(2, 4), target=lambda out: out.round().sum(dim=1))
    with pytest.raises(errors.RelevanceError, match="does not depend on the input"):
        relevance(Apply(lambda x: x.detach()), normal(2, 4), target=0)


def test_an_unknown_rulebook_names_the_known():
    with pytest.raises(
        errors.OptionError,
        match=r"unknown rulebook 'epsilonn'\. Closest: epsilon,.* Known: auto, epsilon, cp, gate, attn, epsilon_plus",
    ):
        relevance(Apply(F.relu), normal(2, 4), target=0, rules="epsilonn")
