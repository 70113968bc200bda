"""Operations that torch does not know, functions that take functions, entries chosen or written by their numbers.

Each is followed as experiments say, or unknown with the reason; then its axes can be named.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from layerlens import Lens
from layerlens.axes.followed import followed
from layerlens.axes.layout import described
from layerlens.errors import AxesUnknown, InputError
from layerlens.inputs.inputs import as_inputs
from tests.axes.experiments import check
from tests.cases import perturb


class Around(nn.Module):
    """Something in the middle of a model of (batch, time, feature)."""

    def __init__(self, middle):
        super().__init__()
        self.first, self.inside, self.last, self.after = (
            nn.Linear(5, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 3),
            nn.Identity(),
        )
        self.middle = middle

    def forward(self, x):
        return self.last(self.after(self.middle(self.first(x), self.inside)))


def around(middle, x=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return perturb(Around(middle)).eval(), torch.randn(2, 7, 5) if x is None else x


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0) ** 2

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0].clamp(min=0) * gradient


class Compiled(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = torch.compile(nn.Sequential(nn.Linear(6, 6), nn.ReLU()), backend="eager")

    def forward(self, x, inside):
        return self.block(x) + x


def flexible(x, inside):
    heads = F.pad(x.unflatten(2, (2, 3)).transpose(1, 2), (0, 1))
    return inside(flex_attention(heads, heads, heads)[..., :3].transpose(1, 2).flatten(2))


def written_over(x, inside):
    new = x.flip(1).clone()
    new[:] = inside(x)
    return new


def filled_from_behind(x, inside):
    new = torch.zeros_like(x)
    for step in range(x.shape[1]):
        new[:, -1 - step] = x[:, step]
    return new


FOLLOWED = {
    "autograd function": lambda x, inside: inside(Squared.apply(x)),
    "layer under vmap": lambda x, inside: torch.func.vmap(inside)(x),
    "layer under vmap over time": lambda x, inside: torch.func.vmap(inside, in_dims=1, out_dims=1)(x),
    "compiled": Compiled(),
    "flex attention": flexible,
    "merged neighbors": lambda x, inside: inside((x[:, :-1:2] + x[:, 1::2]) / 2),
    "written over": written_over,
    "filled from behind": filled_from_behind,
    "buckets": lambda x, inside: torch.bucketize(inside(x), torch.linspace(-1, 1, 9)).to(x),
    "one hot": lambda x, inside: F.one_hot(inside(x).argmax(-1), 6).to(x),
}


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile", "ignore:.*is compiled")
@pytest.mark.parametrize("name", FOLLOWED)
def test_it_is_followed_as_experiments_say(name):
    net, x = around(FOLLOWED[name])
    axes = followed(net, as_inputs(x))
    assert not check(net, as_inputs(x), axes).wrong
    assert described(axes.site("after").axes()) == "batch | time | unit"


ORDER = torch.tensor([3, 1, 0, 6, 5, 2, 4])
ORDERS = torch.stack([ORDER, ORDER.flip(0)])[..., None].expand(-1, -1, 6)


@torch.library.custom_op("layerlens_tests::gated", mutates_args=())
def gated(x: torch.Tensor) -> torch.Tensor:
    return x * x.sigmoid()


def pruned(x, inside):
    best = x.mean(-1).topk(4, 1).indices
    return inside(x.gather(1, best[..., None].expand(-1, -1, 6)))


def masked_autoencoder(x, inside):
    order = torch.stack([ORDER, ORDER.flip(0)])
    kept = inside(x.gather(1, ORDERS[:, :4]))
    whole = torch.cat([kept, torch.zeros(2, 3, 6)], 1)
    return whole.gather(1, order.argsort(1)[..., None].expand(-1, -1, 6))


def merged_tokens(x, inside):
    a, b = x[:, :-1:2], x[:, 1::2]
    best, where = (a @ b.transpose(1, 2)).max(-1)
    order = best.argsort(-1, descending=True)[..., None]
    moved, stays = order[:, :1].expand(-1, -1, 6), order[:, 1:].expand(-1, -1, 6)
    b = b.scatter_reduce(1, where[..., None].gather(1, order[:, :1]).expand(-1, -1, 6), a.gather(1, moved), "mean")
    return inside(torch.cat([a.gather(1, stays), b], 1))


def ragged(x, inside):
    return torch.nested.to_padded_tensor(inside(torch.nested.nested_tensor(list(x.unbind()))), 0.0)


def jagged(x, inside):
    return inside(torch.nested.nested_tensor_from_jagged(x.flatten(0, 1), torch.tensor([0, 7, 14]))).values().view_as(x)


def put(x, inside):
    new = torch.empty_like(x)
    new[:, ORDER] = inside(x)
    return new


def put_rows(x, inside):
    new = x.clone()
    new[torch.arange(2)[:, None], ORDERS[..., 0]] = x
    return new


def filled_in_another_order(x, inside):
    new = torch.zeros(2, 7, 6)
    for step, place in enumerate(ORDER.tolist()):
        new[:, place] = x[:, step]
    return new


UNKNOWN = {
    "custom operation": (lambda x, inside: gated(x), "gated is not followed"),
    "numpy": (
        lambda x, inside: torch.from_numpy(x.detach().numpy() ** 2),
        r"left torch by numpy\(\) in the model itself",
    ),
    "numbers": (lambda x, inside: inside(torch.tensor(x.tolist())), r"left torch by tolist\(\)"),
    "single numbers": (
        lambda x, inside: torch.tensor([[[float(one) for one in row] for row in rows] for rows in x]),
        r"left torch by item\(\)",
    ),
    "pruned": (pruned, "topk orders the entries by their values"),
    "merged tokens": (merged_tokens, "sort orders the entries by their values"),
    "masked autoencoder": (masked_autoencoder, "gathered entries"),
    "ragged": (ragged, "to_padded_tensor is not followed"),
    "jagged": (jagged, "_nested_get_values is not followed"),
    "scattered": (lambda x, inside: torch.zeros_like(x).scatter(1, ORDERS, x), "writes entries by their numbers"),
    "scattered over": (lambda x, inside: x.scatter(1, ORDERS, x), "to other places than their own"),
    "copied": (lambda x, inside: x.index_copy(1, ORDER, x), "to other places than their own"),
    "put": (put, "writes entries by their numbers"),
    "put over": (put_rows, "to other places than their own"),
    "filled": (filled_in_another_order, "filled entry by entry"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:.*prototype")
@pytest.mark.parametrize("name", UNKNOWN)
def test_it_is_unknown_with_the_reason_and_can_be_named(name):
    middle, why = UNKNOWN[name]
    net, x = around(middle)
    axes = followed(net, as_inputs(x))
    assert not check(net, as_inputs(x), axes).wrong
    with pytest.raises(AxesUnknown, match=rf"{why}.* axes=\{{'after': \('batch', 'token', 'unit'\)\}}"):
        axes.site("after").axes()
    lens = Lens(net, axes={"after": ("batch", "token", "unit")})
    assert lens.capture(x).axes("last") == ("batch", "token", "unit")
    assert lens.activation_maps(x, layer="last").values.shape[:2] == (2, 3)


def test_entries_that_are_written_where_they_were_keep_their_axes():
    def deep(x, inside):  # a mixture of depths: some tokens are processed and written back
        best = x.mean(-1).topk(4, 1).indices[..., None].expand(-1, -1, 6)
        return x.scatter(1, best, inside(x.gather(1, best)))

    def every_other(x, inside):
        new = x.clone()
        new[:, torch.tensor([1, 3, 5])] = inside(x[:, torch.tensor([1, 3, 5])])
        return new

    for middle in (deep, every_other):
        net, x = around(middle)
        axes = followed(net, as_inputs(x))
        assert (
            described(axes.site("after").axes()) == "batch | time | unit" and not check(net, as_inputs(x), axes).wrong
        )


def test_a_layer_under_vmap_is_recorded_with_the_mapped_axis_in_front():
    net, x = around(lambda x, inside: torch.func.vmap(inside, in_dims=1, out_dims=1)(x))
    record = Lens(net).capture(x)
    with torch.no_grad():
        assert torch.allclose(record["inside"], net.inside(net.first(x)).transpose(0, 1))
    assert record.axes("inside") == ("time", "batch", "unit")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_scripted_layer_is_refused_by_its_name():
    net, x = around(torch.jit.trace(nn.Linear(6, 6), torch.zeros(2, 7, 6)))
    with pytest.raises(InputError, match=r"layer 'middle' is TorchScript, .* the module that it was made from"):
        followed(net, as_inputs(x))
