"""Many operations in one place: the books close on every one of them, in float64, under two rulebooks."""

import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerlens import relevance
from tests.cases import normal

torch.manual_seed(0)
W = torch.randn(8, 8).double()
W3 = torch.randn(5, 8, 8).double()
PICTURES = {
    "lrn": nn.LocalResponseNorm(3),
    "groupnorm": nn.GroupNorm(2, 4),
    "instancenorm": nn.InstanceNorm2d(4, affine=True),
    "instancenorm running": nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "lppool": nn.LPPool2d(2, 2),
    "fractional": nn.FractionalMaxPool2d(2, output_size=4),
    "adaptivemax": nn.AdaptiveMaxPool2d(3),
    "adaptiveavg": nn.AdaptiveAvgPool2d(3),
    "max pool of ties": lambda x: F.max_pool2d(x.clamp(min=0), 2),
    "avgpool pad": nn.AvgPool2d(3, 2, 1),
    "avgpool1d": lambda x: F.avg_pool1d(x.flatten(2), 2),
    "max1d": lambda x: F.max_pool1d(x.flatten(2), 2),
    **{
        f"interp {m}": (lambda x, m=m: F.interpolate(x, scale_factor=1.7, mode=m))
        for m in ("nearest", "bilinear", "bicubic", "area", "nearest-exact")
    },
    "interp aa": lambda x: F.interpolate(x, size=(5, 5), mode="bilinear", antialias=True),
    "reflect": nn.ReflectionPad2d(1),
    "replicate": nn.ReplicationPad2d(1),
    "circular": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
    "constpad": nn.ConstantPad2d(1, 0.5),
    "roll": lambda x: x.roll(2, 2),
    "unfold": lambda x: F.unfold(x, 2),
    "fold": lambda x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2),
    "pixelshuffle": nn.PixelShuffle(2),
    "pixelunshuffle": nn.PixelUnshuffle(2),
    "channelshuffle": nn.ChannelShuffle(2),
    "as_strided": lambda x: x.contiguous().as_strided((2, 4, 4, 4), (256, 64, 16, 2)),
    "tensor unfold": lambda x: x.unfold(2, 3, 2),
    "prelu": nn.PReLU(4),
    "rrelu": nn.RReLU().eval(),
    "softmax2d": nn.Softmax2d(),
    "weightnorm": nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 3, 3)),
    "spectral": nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 3, 3)).eval(),
    "conv1d": nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 3, 3, dilation=2, groups=1)),
    "convT dil": nn.ConvTranspose2d(4, 4, 3, 2, 1, 1, 2, True, 2),
    "grid_sample": lambda x: F.grid_sample(x, torch.rand(2, 5, 5, 2, dtype=x.dtype) * 2 - 1, align_corners=False),
    "batchnorm train stats": nn.BatchNorm2d(4, track_running_stats=False),
    "maxunpool": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), (2, 2)),
    "se": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "global resp norm": lambda x: (
        x * (x.norm(dim=(2, 3), keepdim=True) / (x.norm(dim=(2, 3), keepdim=True).mean(1, keepdim=True) + 1e-6))
    ),
    "l2 norm": lambda x: F.normalize(x, dim=1),
    "fft": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 0.5),
    "diff": lambda x: x.diff(dim=2),
    "dropout": nn.Dropout(0.3),
}
VECTORS = {
    "bilinear": lambda x: F.bilinear(x, x.flip(1), W3),
    "einsum": lambda x: torch.einsum("bi,ij->bj", x, W),
    "einsum both": lambda x: torch.einsum("bi,bj->bij", x, x.flip(1)),
    "baddbmm": lambda x: torch.baddbmm(x.unsqueeze(1), x.unsqueeze(1), W.expand(2, 8, 8)),
    "addcmul": lambda x: torch.addcmul(x, x, x.flip(1), value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.flip(1) ** 2 + 1),
    "addmm": lambda x: torch.addmm(x, x, W),
    "addmm alpha": lambda x: torch.addmm(x, x, W, alpha=0.3, beta=2),
    "lerp": lambda x: torch.lerp(x, x.flip(1), 0.3),
    "lerp w": lambda x: torch.lerp(x, x.flip(1), torch.sigmoid(x)),
    "glu": nn.GLU(),
    "elu": nn.ELU(),
    "softplus": nn.Softplus(),
    "hardswish": nn.Hardswish(),
    "threshold": nn.Threshold(0.1, 0.5),
    "relu6": nn.ReLU6(),
    "rms hand": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "rmsnorm": nn.RMSNorm(8),
    "ln hand": lambda x: (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5),
    "ln std": lambda x: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5),
    "gather": lambda x: x.gather(1, torch.tensor([[1, 2, 3], [0, 0, 7]])),
    "scatter": lambda x: torch.zeros(2, 12, dtype=x.dtype).scatter(1, torch.arange(8).expand(2, 8), x),
    "scatter_add": lambda x: torch.ones(2, 3, dtype=x.dtype).scatter_add(1, torch.arange(8).expand(2, 8) % 3, x),
    "index": lambda x: x[:, [1, 1, 3]],
    "index_add": lambda x: torch.ones(2, 4, dtype=x.dtype).index_add(1, torch.arange(8) % 4, x),
    "index_put": lambda x: x.index_put(
        (torch.tensor([0, 1]), torch.tensor([2, 3])), torch.tensor([0.5, 0.6], dtype=x.dtype)
    ),
    "index_copy": lambda x: x.index_copy(1, torch.tensor([1, 2]), torch.ones(2, 2, dtype=x.dtype)),
    "masked_scatter": lambda x: x.masked_scatter(x > 0.3, torch.ones(20, dtype=x.dtype)),
    "index_fill": lambda x: x.index_fill(1, torch.tensor([1]), 0.4),
    "scatter value": lambda x: x.scatter(1, torch.tensor([[1], [2]]), 0.7),
    "scatter src const": lambda x: x.scatter(1, torch.tensor([[1], [2]]), torch.ones(2, 1, dtype=x.dtype)),
    "select_scatter": lambda x: x.select_scatter(torch.ones(2, dtype=x.dtype), 1, 2),
    "slice_scatter": lambda x: torch.ones(2, 8, dtype=x.dtype).slice_scatter(x[:, :3], 1, 2, 5),
    "where": lambda x: torch.where(x > 0, x, torch.tensor(0.2, dtype=x.dtype)),
    "topk": lambda x: x.topk(3, 1).values,
    "sort": lambda x: x.sort(1).values,
    "cumsum": lambda x: x.cumsum(1),
    "prod": lambda x: x.prod(1, keepdim=True),
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True),
    "max": lambda x: x.max(1, keepdim=True).values,
    "var": lambda x: x.var(1, keepdim=True) * x,
    "norm*": lambda x: x.norm(dim=1, keepdim=True) * x,
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "kron": lambda x: torch.kron(x, torch.ones(1, 2, dtype=x.dtype)),
    "outer": lambda x: x.unsqueeze(2) * x.unsqueeze(1),
    "cross": lambda x: torch.cross(x[:, :3], x[:, 3:6], dim=1),
    "cosine": lambda x: F.cosine_similarity(x, W[:1], dim=1).unsqueeze(1) * x,
    "softmax": lambda x: x.softmax(1),
    "softmin": nn.Softmin(1),
    "logsigmoid": nn.LogSigmoid(),
    "celu": nn.CELU(),
    "tanhshrink": nn.Tanhshrink(),
    "expm1": torch.expm1,
    "log": lambda x: torch.log(x.abs() + 1),
    "round": lambda x: x.round() + x,
    "floor": lambda x: x.floor() + x,
    "abs": torch.abs,
    "neg": torch.neg,
    "clamp": lambda x: x.clamp(-0.2, 0.3),
    "nan_to_num": torch.nan_to_num,
    "hardshrink": nn.Hardshrink(),
    "maximum": lambda x: torch.maximum(x, x.flip(1)),
    "minimum const": lambda x: torch.minimum(x, torch.tensor(0.1, dtype=x.dtype)),
    "erf": torch.erf,
    "erfc": torch.erfc,
    "acos": lambda x: torch.acos(x.tanh()),
    "cosh": torch.cosh,
    "sign": lambda x: x.sign() * x,
    "polygamma": lambda x: torch.special.i0(x),
    "gumbel": lambda x: F.gumbel_softmax(x, hard=False),
    "embeddingbag": lambda x: F.embedding_bag(torch.arange(8).reshape(2, 4), x.t().contiguous()),
    "inverse": lambda x: torch.linalg.solve(W, x.unsqueeze(2)),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.reshape(2, 4, 2).contiguous()) * (1 + 2j)),
    "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "tile": lambda x: x.tile(1, 2),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "trapz": lambda x: torch.trapezoid(x, dim=1).unsqueeze(1),
    "pow tensor": lambda x: (x.abs() + 0.1) ** torch.full((8,), 1.5, dtype=x.dtype),
    "softsign": nn.Softsign(),
    "silu hand": lambda x: x / (1 + torch.exp(-x)),
    "std": lambda x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True),
    "median": lambda x: x.median(1, keepdim=True).values,
    "diag": lambda x: torch.diag_embed(x),
    "tril": lambda x: torch.tril(x.unsqueeze(2) * W),
    "bmm const": lambda x: torch.bmm(x.unsqueeze(1), W.expand(2, 8, 8)),
    "rms_norm torch": lambda x: F.rms_norm(x, (8,), torch.ones(8, dtype=x.dtype)),
    "swiglu": lambda x: F.silu(x[:, :4]) * x[:, 4:],
    "geglu": lambda x: F.gelu(x[:, :4]) * x[:, 4:],
    "square": torch.square,
    "mish": nn.Mish(),
    "relu squared": lambda x: F.relu(x) ** 2,
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "laplace": lambda x: 0.5 * (1 + torch.erf((x - 0.7) / (0.28 * math.sqrt(2)))),
    "snake": lambda x: x + torch.sin(x) ** 2,
}


class Around(nn.Module):
    """A linear layer, an operation, and two weighted sums of what it returns."""

    def __init__(self, layer, operation):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.operation = layer, operation
        self.inner = nn.ModuleList([operation] if isinstance(operation, nn.Module) else [])

    def forward(self, x):
        y = self.operation(self.layer(x)).flatten(1)
        weights = torch.linspace(-1, 2, y.shape[1], dtype=y.dtype)
        return torch.stack([y.mean(1), (y * weights).sum(1)], 1)


ALL: dict[str, Any] = {
    name: (nn.Conv2d, (3, 4, 3, 1, 1), (2, 3, 8, 8), operation) for name, operation in PICTURES.items()
}
ALL |= {name: (nn.Linear, (6, 8), (2, 6), operation) for name, operation in VECTORS.items()}


@pytest.mark.parametrize("rules", ["epsilon", "attn"])
@pytest.mark.parametrize("name", ALL)
def test_the_books_close(name, rules):
    kind, sizes, shape, operation = ALL[name]
    torch.manual_seed(0)
    model = Around(kind(*sizes), operation).double().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="samples influence each other")  # sums over samples are rows too
        result = relevance(model, normal(*shape).double(), target=1, rules=rules, strict=True)
    assert float(result.ledger.relative.max()) < 1e-9
    assert bool(torch.isfinite(result.values).all())
    assert float(result.values.abs().max()) > 0
