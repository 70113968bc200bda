"""Constants come in by many ways; the ledger knows them all, and speaks up when it does not close."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerlens import relevance
from layerlens.rules import Kind, Row, register
from tests.cases import normal

C = normal(2, 4).double()


def item(h):
    h[:, 0] = 5.0
    return h


def items(h):
    h[:, :2] = C[:, :2]
    return h


def masked(h):
    h[h > 0.3] = 0.2
    return h


def written_view(h):
    h[:, 1].add_(C[:, 1])
    h[:, 2].fill_(0.7)
    return h


def buffer(h):
    kept = C.clone()
    kept[:, 1:3] = h[:, 1:3]
    return kept


WAYS = {
    "item": item, "items": items, "masked": masked, "written view": written_view, "buffer": buffer,
    "max": lambda h: torch.max(h, C), "min": lambda h: h.min(C), "fmax": lambda h: torch.fmax(h, C),
    "fmin": lambda h: torch.fmin(C, h), "hstack": lambda h: torch.hstack([h, C])[:, 2:6],
    "vstack": lambda h: torch.vstack([h[:1], C[:1]]), "dstack": lambda h: torch.dstack([h, C]).sum(2),
    "column_stack": lambda h: torch.column_stack([C, h])[:, 2:6],
    "diff": lambda h: torch.diff(h, prepend=C[:, :1]), "lerp": lambda h: torch.lerp(h, C, 0.3),
    "lerp from a constant": lambda h: torch.lerp(C, h, 0.3), "addcmul": lambda h: torch.addcmul(C, h, C),
    "addcmul of constants": lambda h: torch.addcmul(h, C, C, value=0.5),
    "addcdiv": lambda h: torch.addcdiv(h, C, C.abs() + 1), "threshold": lambda h: F.threshold(h, 0.1, 2.0),
    "index_fill": lambda h: h.index_fill(1, torch.tensor([1]), 0.4),
    "index_add": lambda h: C.index_add(1, torch.tensor([0, 1, 2, 2]), h),
    "scatter": lambda h: h.scatter(1, torch.tensor([[1], [2]]), C[:, :1]),
    "scatter_add": lambda h: C.scatter_add(1, torch.tensor([[0, 1, 1, 3]] * 2), h),
    "masked_scatter": lambda h: h.masked_scatter(h > 0, C),
    "slice_scatter": lambda h: C.slice_scatter(h[:, :2], 1, 1, 3),
    "select_scatter": lambda h: h.select_scatter(C[:, 0], 1, 2), "number to the power": lambda h: 2.0**h,
}  # fmt: skip


class Between(nn.Module):
    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.way = nn.Linear(3, 4), nn.Linear(4, 2), way

    def forward(self, x):
        return self.b(self.way(self.a(x)))


@pytest.mark.parametrize("rules", ["epsilon", "attn"])
@pytest.mark.parametrize("name", WAYS)
def test_the_books_close(name, rules):
    result = relevance(Between(WAYS[name]).double(), normal(2, 3).double(), target=1, rules=rules, strict=True)
    assert float(result.ledger.relative.max()) < 1e-12


def test_a_division_that_rounds_stops_relevance():
    net = Between(lambda h: h + h.div(2, rounding_mode="floor")).double()
    assert float(relevance(net, normal(2, 3).double(), target=1).ledger.relative.max()) < 1e-12


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x + 1

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def test_a_ledger_that_does_not_close_is_warned_of():
    with register(Doubling, Row(Kind.LINEAR)), pytest.warns(UserWarning, match="the ledger does not close"):
        relevance(Between(Doubling.apply), normal(2, 3), target=1)


def test_a_full_backward_hook_of_the_users_is_the_identity():
    net = Between(lambda h: h)
    net.a.register_full_backward_hook(lambda module, inner, outer: None)
    assert float(relevance(net, normal(2, 3), target=1, strict=True).ledger.relative.max()) < 1e-6


def test_what_is_overwritten_later_is_booked_as_it_was():
    """Constants, and inputs of functions that save their result only."""

    class Overwriting(nn.Module):
        def forward(self, x):
            first, second = torch.ones(3), torch.full((3,), 0.5)
            x = x + first
            first.mul_(5)
            x = x - second
            second[0] = 9.0
            x *= x.sigmoid()
            x[:, :2] *= 2
            return x

    x = torch.tensor([[0.3, -2.0, 0.7], [1.5, 0.1, -0.4]])
    for target in range(3):
        assert float(relevance(Overwriting(), x, target=target, rules="attn").ledger.relative.max()) < 1e-6


WRITES = {
    "of random numbers": lambda tensor: tensor.uniform_(5, 6),
    "zeros": lambda tensor: tensor.zero_(),
    "by out=": lambda tensor: torch.mul(torch.ones(3), 9, out=tensor),
    "of a sum by out=": lambda tensor: torch.add(tensor, 5, out=tensor),
    "of a fresh tensor": lambda tensor: torch.rand(3, out=tensor),
    "of a list": lambda tensor: torch._foreach_mul_([tensor], 3.0),
    "through a view": lambda tensor: tensor.view(3, 1).normal_(),
    "of a layer": lambda tensor: nn.ReLU(inplace=True)(tensor.sub_(9)),
    "of an initialization": lambda tensor: nn.init.uniform_(tensor, 3, 4),
}


@pytest.mark.parametrize("kind", WRITES)
def test_a_constant_is_booked_as_it_was_before_any_write(kind):
    class Overwriting(nn.Module):
        def forward(self, x):
            constant = torch.full((3,), 2.0, dtype=x.dtype)
            x = x + constant
            WRITES[kind](constant)
            return x

    x = normal(2, 3)
    ledger = relevance(Overwriting(), x, target=1, rules="epsilon").ledger
    torch.testing.assert_close(ledger.additive, torch.full((2,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(ledger.inputs, x[:, 1].double())
