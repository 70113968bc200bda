"""Entries that are chosen by their numbers, and put back."""

import pytest
import torch
from torch import nn

from layerlens.axes.followed import followed
from layerlens.axes.layout import described
from layerlens.inputs.inputs import as_inputs
from tests.axes.experiments import check, same_claims


class Around(nn.Module):
    """Something in the middle of a model of (batch, time, feature)."""

    def __init__(self, middle):
        super().__init__()
        self.first, self.inside, self.last, self.middle = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3), middle

    def forward(self, x):
        return self.last(self.middle(self.first(x), self.inside))


def in_another_order(x, inside):
    order = x.sum((0, 2)).argsort()
    return inside(x[:, order])[:, order.argsort()]


def experts(x, inside):
    rows = x.flatten(0, 1)
    picks = rows[:, :4].topk(2).indices.flatten()
    order = picks.argsort()
    done = inside(rows[order // 2])
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return done[back].view(len(rows), 2, -1).sum(1).view_as(x)


def experts_that_add(x, inside):
    rows, total = x.flatten(0, 1), torch.zeros(x.shape[0] * x.shape[1], 6)
    chosen = (rows[:, 0] > 0).nonzero()[:, 0]
    return total.index_add(0, chosen, inside(rows[chosen])).view_as(x)


def without_padding(x, inside):
    mask = x[..., 0] > -1
    padded = torch.zeros(*x.shape[:2], 6)
    padded[mask] = inside(x[mask])
    return padded


@pytest.mark.parametrize("middle", [in_another_order, experts, experts_that_add, without_padding])
def test_what_is_put_back_has_its_axes_again(middle):
    net, x = Around(middle).eval(), torch.randn(2, 7, 5)
    inputs = as_inputs(x)
    axes = followed(net, inputs)
    assert described(axes.site("last").outputs[""]) == "batch | time | unit"
    assert not axes.site("inside").outputs[""][0 if middle is not in_another_order else 1].known
    assert not check(net, inputs, axes).wrong


def test_entries_at_even_distances_keep_their_places():
    net = Around(lambda x, inside: inside(x[:, torch.tensor([1, 3, 5])]))
    axes = followed(net, as_inputs(torch.randn(2, 7, 5))).site("last").axes()
    part = axes[1].part
    assert (part.size, part.offset, part.stride) == (3, 1, 2)


class Detector(nn.Module):
    """Samples one by one, put in one tensor; of each the places of the best units, and these in their own order."""

    def __init__(self):
        super().__init__()
        self.body, self.picked, self.fixed = nn.Conv1d(2, 6, 3, padding=1), nn.Identity(), nn.Identity()

    def forward(self, x):
        same = x.new_zeros(x.shape)
        for place, sample in enumerate(x):
            same[place, :, :].copy_(sample * 2)
        units = self.body(same)
        found = [sample[sample.sum(1).topk(3).indices] for sample in units]
        return self.picked(torch.stack(found)), self.fixed(units[:, torch.tensor([4, 0, 3])])


def test_samples_read_one_by_one_and_units_chosen_by_their_values():
    model, inputs = Detector().eval(), as_inputs(torch.randn(3, 2, 8))
    axes = followed(model, inputs)
    assert described(axes.site("body").outputs[""]).split(" | ")[0] == "batch"
    picked, fixed = axes.site("picked").outputs[""], axes.site("fixed").outputs[""]
    assert described(picked).split(" | ")[:2] == ["batch", "?"] and described(fixed).split(" | ")[:2] == [
        "batch",
        "unit",
    ]
    assert not check(model, inputs, axes).wrong
    assert not same_claims(axes, followed(model, as_inputs(inputs.args[0][:1])))
