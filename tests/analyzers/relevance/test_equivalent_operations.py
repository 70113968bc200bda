"""Operations that compute the same get the same relevance, and what each gets is that of a rule written out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerlens import errors, relevance
from tests.cases import normal

C, P, A = normal(2, 8).double(), normal(5, 8, seed=1).double(), normal(8, 8, seed=2).double()
LOWER = torch.tril(A) + 4 * torch.eye(8).double()
EVEN = torch.arange(8) % 2 == 0
GROUPS = torch.arange(8).expand(2, 8) % 3
DIAGONAL = torch.eye(8, dtype=torch.bool)
OFFSET = torch.full((4,), 0.3 - 1j, dtype=torch.complex128)
LN2 = math.log(2)


class After(nn.Module):
    """A function of a signed linear map of the input, and two weighted sums of what it returns."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.function = nn.Linear(6, 8), function

    def forward(self, x):
        return sums(self.function(self.layer(x)))


def sums(y):
    y = torch.view_as_real(y.resolve_conj()) if y.is_complex() else y
    y = y.flatten(1)
    return torch.stack([y.mean(1), (y * torch.linspace(-1, 2, y.shape[1], dtype=y.dtype)).sum(1)], 1)


def copied(h, into=None):
    out = h.clone() if into is None else into.clone()
    out[:, :3].copy_(C[:, :3] if into is None else h[:, :3])
    return out


def assigned(h, into=None):
    out = h.clone() if into is None else into.clone()
    out[:, :3] = C[:, :3] if into is None else h[:, :3]
    return out


def added(h):
    out = C.clone()
    out[:, :3].add_(h[:, :3])
    return out


def rounded(h):
    out = h.clone()
    out[:, :3].round_()
    return out


def in_place(h):
    out = h.clone()
    out[:, :3] *= 3
    out[:, :3] += C[:, :3]
    out[:, :3] -= 2
    out[:, :3] **= 2
    out[:, :3] /= 2
    return out


def squares(h):
    return h.unsqueeze(2) * h.unsqueeze(1)


def as_complex(h):
    return torch.complex(h[:, :4], h[:, 4:])


ones = torch.ones(2, 3).double()
SAME = {
    "subtract": [lambda h: h - C, lambda h: h.subtract(C), lambda h: h.clone().subtract_(C)],
    "copy into a slice": [copied, assigned, lambda h: torch.cat([C[:, :3], h[:, 3:]], 1)],
    "copy into a constant": [
        lambda h: copied(h, C), lambda h: assigned(h, C), lambda h: torch.cat([h[:, :3], C[:, 3:]], 1),
    ],
    "add into a constant": [added, lambda h: C + F.pad(h[:, :3], (0, 5))],
    "clamp": [
        lambda h: h.clamp(min=h.flip(1)),
        lambda h: h.clamp_min(h.flip(1)),
        lambda h: torch.maximum(h, h.flip(1)),
        lambda h: torch.where(h > h.flip(1), h, h.flip(1)),
    ],
    "clamp a constant": [lambda h: C.clamp(min=h), lambda h: torch.maximum(C, h)],
    "clamp between": [
        lambda h: C.clamp(h - 1, h.flip(1) + 1),
        lambda h: torch.minimum(torch.maximum(C, h - 1), h.flip(1) + 1),
    ],
    "clamp by a broadcast bound": [lambda h: h[:, :1].clamp(max=C), lambda h: h[:, :1].expand(2, 8).clamp(max=C)],
    "scatter a sum": [
        lambda h: ones.scatter_reduce(1, GROUPS, h, "sum"),
        lambda h: ones.scatter_add(1, GROUPS, h),
        lambda h: ones.index_add(1, GROUPS[0], h),
    ],
    "scatter a mean": [
        lambda h: ones.scatter_reduce(1, GROUPS, h, "mean"),
        lambda h: ones.index_reduce(1, GROUPS[0], h, "mean"),
        lambda h: ones.scatter_add(1, GROUPS, h) / torch.tensor([4.0, 4.0, 3.0]).double(),
    ],
    "scatter a maximum": [
        lambda h: (0.1 * ones).scatter_reduce(1, GROUPS, h, "amax"),
        lambda h: torch.maximum(0.1 * ones, torch.stack([h[:, i::3].amax(1) for i in range(3)], 1)),
    ],
    "scatter a product": [
        lambda h: ones.scatter_reduce(1, GROUPS, h, "prod"),
        lambda h: torch.stack([h[:, i::3].prod(1) for i in range(3)], 1),
    ],
    "diagonal": [
        lambda h: torch.stack([square.clone().fill_diagonal_(0.7) for square in squares(h)]),
        lambda h: squares(h).masked_fill(DIAGONAL, 0.7),
    ],
    "product": [
        lambda h: h.prod(-1).unsqueeze(1),
        lambda h: h.prod(1, keepdim=True),
        lambda h: h.cumprod(-1)[:, -1:],
        lambda h: torch.stack([row.prod() for row in h]).unsqueeze(1),
    ],
    "logarithm": [
        lambda h: torch.log2(h.abs() + 1),
        lambda h: torch.log(h.abs() + 1) / LN2,
        lambda h: torch.log10(h.abs() + 1) / math.log10(2),
    ],
    "exponential": [torch.exp2, lambda h: 2.0**h, torch.special.exp2, lambda h: torch.pow(2.0, h)],
    "expm1": [torch.expm1, lambda h: h.exp() - 1, lambda h: h.clone().expm1_()],
    "gate of exponentials": [lambda h: h * torch.exp2(h.flip(1)), lambda h: h * 2.0 ** h.flip(1)],
    "logaddexp": [
        lambda h: torch.logaddexp(h, h.flip(1)),
        lambda h: torch.logsumexp(torch.stack([h, h.flip(1)], 1), 1),
        lambda h: torch.logaddexp2(h / LN2, h.flip(1) / LN2) * LN2,
    ],
    "tangent": [lambda h: torch.tan(4 * h), lambda h: (4 * h).tan_()],
    "angle": [
        lambda h: torch.atan2(h, h.flip(1).abs() + 0.1),
        lambda h: torch.atan(h / (h.flip(1).abs() + 0.1)),
        lambda h: torch.arctan2(h, h.flip(1).abs() + 0.1),
    ],
    "logit": [
        lambda h: torch.logit(torch.sigmoid(h)),
        lambda h: torch.log(torch.sigmoid(h)) - torch.log(1 - torch.sigmoid(h)),
        lambda h: torch.special.logit(torch.sigmoid(h)),
    ],
    "normal distribution": [torch.special.ndtr, lambda h: 0.5 * (1 + torch.erf(h / math.sqrt(2)))],
    "outer product": [
        lambda h: torch.stack([torch.addr(A, row, row.flip(0), beta=0.5, alpha=2) for row in h]),
        lambda h: 0.5 * A + 2 * h.unsqueeze(2) * h.flip(1).unsqueeze(1),
    ],
    "product of constants added": [lambda h: torch.addmm(h, C, A), lambda h: h + C @ A],
    "solve": [
        lambda h: torch.linalg.solve_triangular(LOWER, h.unsqueeze(2), upper=False),
        lambda h: torch.linalg.solve(LOWER, h.unsqueeze(2)),
        lambda h: torch.linalg.inv(LOWER) @ h.unsqueeze(2),
        lambda h: torch.linalg.lu_solve(*torch.linalg.lu_factor(LOWER.expand(2, 8, 8)), h.unsqueeze(2)),
    ],
    "distance": [
        lambda h: torch.cdist(h, P),
        lambda h: torch.cdist(P, h).T,
        lambda h: torch.cdist(h.repeat(15, 1), P)[:2],
    ],
    "complex bias": [
        lambda h: as_complex(h) * (1 + 2j) + (0.3 - 1j),
        lambda h: F.linear(as_complex(h), torch.eye(4).double() * (1 + 2j), OFFSET),
        lambda h: torch.complex(h[:, :4] - 2 * h[:, 4:] + 0.3, h[:, 4:] + 2 * h[:, :4] - 1),
    ],
    "conjugate": [
        lambda h: as_complex(h).conj(),
        lambda h: torch.conj_physical(as_complex(h)),
        lambda h: torch.complex(h[:, :4], -h[:, 4:]),
    ],
    "complex of a constant": [
        lambda h: torch.complex(h, C),
        lambda h: torch.view_as_complex(torch.stack([h, C], -1)),
        lambda h: h + 1j * C,
    ],
    "vmap of a layer": [
        torch.vmap(lambda row: torch.tanh(A @ row + C[0])),
        lambda h: torch.tanh(h @ A.T + C[0]),
    ],
    "vmap of choices": [
        torch.vmap(lambda row: torch.cat([torch.where(row > 0, row, C[0]), C[1]]).exp()),
        lambda h: torch.cat([torch.where(h > 0, h, C[:1]), C[1:].expand(2, 8)], 1).exp(),
    ],
    "vmap of a norm": [
        torch.vmap(lambda row: F.layer_norm(F.linear(row, A, C[0]), (8,), C[1], C[0]).masked_fill_(row > 0, 0.3)),
        lambda h: F.layer_norm(F.linear(h, A, C[0]), (8,), C[1], C[0]).masked_fill(h > 0, 0.3),
    ],
    "constant over signal": [
        lambda h: h + 2 / (h.abs() + 1),
        lambda h: h + 2 * (h.abs() + 1).reciprocal(),
        lambda h: h + 2 * (h.abs() + 1) ** -1,
        lambda h: h + torch.full_like(h, 2.0) / (h.abs() + 1),
    ],
    "saturated in place": [lambda h: F.elu(100 * h), lambda h: F.elu(100 * h, inplace=True)],
    "saturated CELU in place": [lambda h: F.celu(100 * h), lambda h: F.celu(100 * h, inplace=True)],
    "axes swapped in place": [lambda h: h.view(2, 2, 4).transpose(1, 2), lambda h: h.view(2, 2, 4).swapaxes_(1, 2)],
    "operators on a slice": [in_place, lambda h: torch.cat([(h[:, :3] * 3 + C[:, :3] - 2) ** 2 / 2, h[:, 3:]], 1)],
    "a stop in a slice": [rounded, lambda h: torch.cat([h[:, :3].round(), h[:, 3:]], 1)],
    "complex power": [lambda h: as_complex(h) ** (2 + 0j), lambda h: as_complex(h).square()],
    "masked logsumexp": [
        lambda h: h.masked_fill(EVEN, -math.inf).logsumexp(1, keepdim=True),
        lambda h: h[:, ~EVEN].logsumexp(1, keepdim=True),
        lambda h: torch.logaddexp(h[:, ~EVEN].logsumexp(1, keepdim=True), torch.full((2, 1), -math.inf).double()),
    ],
    "masked log softmax": [
        lambda h: h.masked_fill(EVEN, -math.inf).log_softmax(1)[:, ~EVEN],
        lambda h: h[:, ~EVEN].log_softmax(1),
    ],
    "log where it is defined": [
        lambda h: torch.where(h > 0, h.log(), h),
        lambda h: torch.where(h > 0, torch.log2(h) * LN2, h),
    ],
    "columns": [lambda h: torch.column_stack([h, C[:, 0]]), lambda h: torch.cat([h, C[:, :1]], 1)],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("rules", ["epsilon", "attn"])
@pytest.mark.parametrize("name", SAME)
def test_equivalent_operations_get_equal_relevance(name, rules):
    x = normal(2, 6, seed=3).double()
    first, *others = (relevance(After(f).double(), x, target=1, rules=rules, strict=True) for f in SAME[name])
    assert float(first.values.abs().max()) > 0
    for result in (first, *others):
        assert float(result.ledger.relative.max()) < 1e-9, result.ledger.table()
        torch.testing.assert_close(result.values, first.values, rtol=1e-9, atol=1e-9)


def weights(y):
    return torch.linspace(-1, 2, y[0].numel(), dtype=torch.float64).reshape(y[0].shape)


def running_product(x):
    w, y = weights(x), x.cumprod(1)
    return torch.stack([sum(w[j] * y[:, j] / (j + 1) for j in range(i, 8)) for i in range(8)], 1)


def to_points(x):
    differences = x.unsqueeze(1) - P  # (batch, point, axis)
    lengths = differences.norm(dim=2)
    return x * (weights(lengths).reshape(1, -1, 1) * differences / lengths.unsqueeze(2)).sum(1)


THREE = torch.tensor([[-1.0, 0], [0.01, 0], [1, 0]]).double()  # the first, the fifth and the last of eight places


def half_turns(x):
    y, other = x, x.flip(1)
    return weights(x) * (torch.atan2(y, other) - torch.where(other < 0, torch.sign(y) * math.pi, 0.0))


BY_HAND = {
    "tan": (lambda x: torch.tan(4 * x), lambda x: weights(x) * torch.tan(4 * x)),
    "exp2": (torch.exp2, lambda x: weights(x) * (2**x - 1)),
    "expm1 that saturates": (lambda x: torch.expm1(40 * x), lambda x: weights(x) * torch.expm1(40 * x)),
    "log2": (lambda x: torch.log2(x.abs()), lambda x: (weights(x) / LN2).expand_as(x)),
    "log10": (lambda x: torch.log10(x.abs()), lambda x: (weights(x) / math.log(10)).expand_as(x)),
    "log1p": (lambda x: torch.log1p(x.abs()), lambda x: weights(x) * torch.log1p(x.abs())),
    "acosh": (lambda x: torch.acosh(1 + x.abs()), lambda x: weights(x) * x.abs() / torch.sqrt((1 + x.abs()) ** 2 - 1)),
    "logit": (lambda x: torch.logit(x.abs() / 9), lambda x: weights(x) / (1 - x.abs() / 9)),
    "logaddexp": (lambda x: torch.logaddexp(x, C), lambda x: weights(x) * x * torch.sigmoid(x - C)),
    "logaddexp2": (lambda x: torch.logaddexp2(x, C), lambda x: weights(x) * x * torch.sigmoid((x - C) * LN2)),
    "atan2": (lambda x: torch.atan2(x, x.flip(1)), half_turns),
    "cumprod": (lambda x: x.cumprod(1), running_product),
    "cdist": (lambda x: torch.cdist(x, P), to_points),
    "triangular solve": (
        lambda x: torch.linalg.solve_triangular(LOWER, x.T, upper=False).T,
        lambda x: x * (weights(x) @ torch.linalg.inv(LOWER)),
    ),
    "conj": (
        lambda x: torch.view_as_real(torch.complex(x[:, :4], x[:, 4:]).conj().resolve_conj()).transpose(1, 2),
        lambda x: weights(x) * x * torch.tensor([1.0] * 4 + [-1.0] * 4).double(),
    ),
    "abs of complex": (
        lambda x: torch.complex(x[:, :4], x[:, 4:]).abs(),
        lambda x: (weights(x[:, :4]) / x.unflatten(1, (2, 4)).norm(dim=1)).repeat(1, 2) * x**2,
    ),
    "exp of complex": (
        lambda x: torch.exp(torch.complex(x[:, :4], x[:, 4:])).real,
        lambda x: torch.cat(  # Re(z conj(g)) over z = a + ib with g = w conj((exp(z) - 1) / z)
            [
                (weights(x[:, :4]) * (torch.expm1(z := torch.complex(x[:, :4], x[:, 4:])) / z)).real * x[:, :4],
                -(weights(x[:, :4]) * (torch.expm1(z) / z)).imag * x[:, 4:],
            ],
            1,
        ),
    ),
    "scatter a mean": (
        lambda x: C[:, :3].scatter_reduce(1, GROUPS, x, "mean"),
        lambda x: (weights(C[:, :3]) / torch.tensor([4.0, 4.0, 3.0]))[GROUPS] * x,
    ),
    "clamp by a signal": (
        lambda x: C.clamp(min=x),
        lambda x: weights(x) * x * (x > C),
    ),
    "read by a grid": (
        lambda x: F.grid_sample(x.reshape(2, 1, 1, 8), THREE.expand(2, 1, 3, 2), mode="nearest", align_corners=True),
        lambda x: x * torch.tensor([-1.0, 0, 0, 0, 0.5, 0, 0, 2]).double(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_the_relevance_is_that_of_the_rule_written_out(name):
    class Net(nn.Module):
        def forward(self, x):
            return sums(function(x))

    function, expected = BY_HAND[name]
    x = normal(2, 8, seed=4).double()
    result = relevance(Net(), x, target=1, rules="epsilon", strict=True)
    torch.testing.assert_close(result.values, expected(x), rtol=1e-9, atol=1e-12)
    assert float(result.ledger.relative.max()) < 1e-9, result.ledger.table()


def test_a_constant_over_a_signal_is_named_in_the_ledger_and_in_the_refusal():
    x = normal(2, 6).double()
    result = relevance(After(lambda h: h + 1 / (h.abs() + 1)).double(), x, target=1)
    assert result.rules_used["Reciprocal"].startswith("stop: it divides by a signal")
    assert ("absorbed", "stop at Reciprocal") in {(kind, source) for _, source, kind, _ in result.ledger.table()}
    for function, op in ((lambda h: 1 / h, "Reciprocal"), (lambda h: C / h, "Div"), (lambda h: h**-2.0, "Pow")):
        with pytest.raises(
            errors.RelevanceError, match=rf"leads through {op} \(it divides by a signal, and a quotient"
        ):
            relevance(After(function).double(), x, target=1)
    grid = lambda h: F.grid_sample(A[None, None].expand(2, 1, 8, 8), h.reshape(2, 2, 2, 2), align_corners=False)  # noqa: E731
    with pytest.raises(errors.RelevanceError, match=r"GridSampler2D \(the input that says where to read has no share"):
        relevance(After(grid).double(), x)


def test_a_spatial_transformer_reads_where_its_grid_says():
    def read(h):
        grid = F.affine_grid(h[:, :6].reshape(2, 2, 3), (2, 2, 2, 2), align_corners=False)
        return F.grid_sample(h.reshape(2, 2, 2, 2), grid, align_corners=False)

    result = relevance(After(read).double(), normal(2, 6).double(), target=1, strict=True)
    assert float(result.ledger.relative.max()) < 1e-9 and float(result.values.abs().max()) > 0


@pytest.mark.parametrize("name", ["GeneratedBackwardFor_torchvision_roi_align_default", "ROIAlignFunction"])
def test_operators_of_torchvision_are_known_by_name(name):
    """Pooling by region is linear in what it reads; the regions get nothing (torchvision need not be installed)."""

    def forward(ctx, x, regions):
        ctx.save_for_backward(regions)
        return x @ regions

    def backward(ctx, g):
        (regions,) = ctx.saved_tensors
        return g @ regions.T, torch.ones_like(regions)  # not 0, but no relevance enters

    pool = type(
        name, (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    )
    net = After(lambda h: pool.apply(h, h[:1].T.expand(8, 3).sigmoid()))
    by_hand = After(lambda h: h @ h.detach()[:1].T.expand(8, 3).sigmoid())
    x = normal(1, 6).double()
    found, expected = (relevance(one.double(), x, target=1, strict=one is net) for one in (net, by_hand))
    torch.testing.assert_close(found.values, expected.values, rtol=1e-9, atol=1e-12)
    assert float(found.ledger.relative.max()) < 1e-9


def test_regions_of_torchvision_are_linear_in_what_they_read():
    ops = pytest.importorskip("torchvision.ops", reason="no build of torchvision fits this torch")
    regions = torch.tensor([[0, 0.0, 0, 2, 2], [1, 0, 0, 1, 2]]).double()
    convolution = nn.Conv2d(2, 18, 3, padding=1).double()
    ways = [
        lambda h: ops.roi_align(h, regions, 2),
        lambda h: ops.roi_pool(h, regions, 2),
        lambda h: ops.deform_conv2d(
            h, convolution(h), convolution.weight[:2, :2], convolution.bias[:2], padding=1, mask=convolution(h)[:, :9]
        ),
    ]
    for way in ways:
        net = After(lambda h, way=way: way(h.reshape(2, 2, 2, 2))).double()
        result = relevance(net, normal(2, 6).double(), target=1, rules="epsilon", strict=True)
        assert float(result.ledger.relative.max()) < 1e-9 and float(result.values.abs().max()) > 0


@pytest.mark.parametrize("constant", ["query", "key", "value", "query and key"])
@pytest.mark.parametrize("rules", ["cp", "attn"])
def test_fused_attention_shares_as_eager_attention_does_when_a_part_is_constant(constant, rules):
    def parts(h):
        kept = {"query": P[None, None, :4, :4], "key": C.reshape(1, 1, 4, 4), "value": A[None, None, :4, :4]}
        signal = h.reshape(-1, 1, 2, 4).repeat(1, 1, 2, 1) * torch.linspace(0.5, 2, 4).double()[:, None]
        return [kept[name].expand_as(signal) if name in constant else signal for name in kept]

    def eager(h):
        query, key, value = parts(h)
        return (query @ key.transpose(-1, -2) / 2).softmax(-1) @ value

    fused = After(lambda h: F.scaled_dot_product_attention(*parts(h)))
    one, other = (
        relevance(model.double(), normal(2, 6).double(), target=1, rules=rules) for model in (fused, After(eager))
    )
    torch.testing.assert_close(one.values, other.values, rtol=1e-9, atol=1e-12)
    for result in (one, other):
        assert float(result.ledger.relative.max()) < 1e-9


def test_bloom_equals_bloom_with_the_gelu_of_torch():
    from tests.families import family

    model, x, target = family("bloom")
    model = model.double()
    own = relevance(model, x, target=target, strict=True)
    for block in model.transformer.h:
        block.mlp.gelu_impl = nn.GELU(approximate="tanh")
    plain = relevance(model, x, target=target, strict=True)
    assert float(own.ledger.relative.max()) < 1e-6  # its attention runs in float32
    torch.testing.assert_close(own.values, plain.values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "function, op",
    [
        (lambda h: torch.linalg.eigh(h.unsqueeze(2) * h.unsqueeze(1) + A @ A.T).eigenvalues, "LinalgEigh"),
        (lambda h: torch.linalg.cholesky(h.unsqueeze(2) * h.unsqueeze(1) + A @ A.T), "LinalgCholeskyEx"),
        (lambda h: torch.linalg.matrix_exp(h.unsqueeze(2) * h.unsqueeze(1)), "LinalgMatrixExp"),
        (lambda h: torch.renorm(h, 2, 0, 0.1), "Renorm"),
    ],
)
def test_an_operation_without_a_row_is_named(function, op):
    with pytest.raises(errors.UnknownOperation, match=f"no relevance rule is known for {op}"):
        relevance(After(function).double(), normal(2, 6).double(), target=1, strict=True)


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


MAGNITUDES = {
    "by complex numbers": lambda z: torch.complex(z[:, ::2], z[:, 1::2]).abs(),
    "by hand": lambda z: (z[:, ::2] ** 2 + z[:, 1::2] ** 2).sqrt(),
    "by a power": lambda z: z.unflatten(1, (-1, 2)).square().sum(dim=2) ** 0.5,
    "by hypot": lambda z: torch.hypot(z[:, ::2], z[:, 1::2]),
    "by a norm": lambda z: z.unflatten(1, (-1, 2)).norm(dim=2),
    "by a deviation": lambda z: torch.stack([z[:, ::2], z[:, 1::2], -z[:, ::2], -z[:, 1::2]], 2).std(2, False) * 2**0.5,
}


@pytest.mark.parametrize("how", MAGNITUDES)
def test_a_size_that_scales_nothing_is_a_signal(how):
    """A magnitude spectrum: each part gets its share of the square, also where some magnitudes are 0."""
    torch.manual_seed(0)
    first, last = nn.Linear(6, 8, bias=False).double(), nn.Linear(4, 3).double()
    x = torch.randn(3, 6).double()
    x[2] = 0  # digital silence

    class Spectrum(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = first, last

        def forward(self, x):
            return self.last(MAGNITUDES[how](self.first(x)))

    found = relevance(Spectrum(), x, target=1)
    assert float(found.ledger.relative.max()) < 1e-12
    z = first(x).detach()
    size = (z[:, ::2] ** 2 + z[:, 1::2] ** 2).sqrt().repeat_interleave(2, dim=1)
    share = torch.where(size > 0, last.weight[1].detach().repeat_interleave(2) * z / size, 0.0)
    torch.testing.assert_close(found.tensor, x * (share @ first.weight.detach()), rtol=1e-9, atol=1e-12)


def test_a_size_that_scales_a_signal_has_no_share():
    x = torch.rand(2, 6).double() + 0.5
    for scaled in (
        lambda x: x * x.norm(dim=1, keepdim=True),
        lambda x: x * x.std(dim=1, keepdim=True).mean(),
        lambda x: x * (x.square().sum(dim=1, keepdim=True) + 1).sqrt() / x.sum(dim=1, keepdim=True),
        lambda x: x / x.var(dim=1, keepdim=True).sqrt(),
    ):
        found = relevance(Apply(scaled), x[:1], target=2)
        assert torch.count_nonzero(found.tensor) == 1
        torch.testing.assert_close(found.tensor[0, 2], found.score[0])


def test_deviations_and_variances_as_features_close():
    """Statistics pooling, as in speaker encoders."""
    torch.manual_seed(0)
    last, x = nn.Linear(12, 2).double(), torch.randn(2, 5, 4).double()
    for pooled in (lambda h: torch.cat([h.mean(1), h.std(1), h.var(1)], 1), lambda h: torch.cat([h.var(1)] * 3, 1)):
        found = relevance(Apply(lambda x, pooled=pooled: last(pooled(x))), x, target=0)
        assert float(found.ledger.relative.max()) < 1e-12
        assert float(found.ledger.inputs.abs().min()) > 1e-3 and float(found.ledger.absorbed.abs().max()) == 0
