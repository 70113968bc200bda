"""Token ids: every embedding call that reads them counts, however they are laid out."""

import pytest
import torch
from torch import nn

from layerlens import errors, relevance, saliency, sensitivity

IDS = torch.tensor([[3, 7, 7, 1, 12], [4, 9, 2, 0, 5]])


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.e, self.e2 = nn.Embedding(30, 4), nn.Embedding(30, 3)
        self.p = nn.Embedding(512, 4)
        self.a, self.b, self.c = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(3, 2)
        self.rnn = nn.LSTM(4, 6)
        self.head = nn.Linear(6, 2)


class Twice(Base):
    def forward(self, i):
        return self.a(self.e(i).mean(1)) + self.b(self.e(i).tanh().mean(1))


class TwoTables(Base):
    def forward(self, i):
        return self.a(self.e(i).mean(1)) + self.c(self.e2(i).mean(1))


class Siamese(Base):
    def forward(self, i, j):
        return self.a(self.e(i).mean(1)) * 2 - self.b(self.e(j).mean(1))


class TimeFirst(Base):
    def forward(self, i):
        return self.head(self.rnn(self.e(i.t()))[0][-1])


class Flattened(Base):
    def forward(self, i):
        return self.a(self.e(i.reshape(-1)).reshape(*i.shape, -1).mean(1))


class StepByStep(Base):
    def forward(self, i):
        h = torch.zeros(len(i), 4)
        for t in range(i.shape[1] - 1):
            h = (h + self.e(i[:, t])).tanh()
        return self.a(h)


class Shifted(Base):
    """As for atomic numbers, which begin at 1."""

    def forward(self, i):
        return self.a(self.e(i + 1).mean(1))


class Columns(Base):
    """Categories of several columns in one table, each column with its own rows; positions from another one."""

    def forward(self, i):
        places = torch.arange(5)
        return self.a((self.e(i + 2 * places) + self.p(places.expand(i.shape))).tanh().mean(1))


class Positions(Base):
    def forward(self, input_ids, position_ids):
        return self.a((self.e(input_ids) * self.p(position_ids)).mean(1))


class OwnPositions(Base):
    """As in several transformers: an embedding layer that is given a size, and one that makes positions of the ids."""

    class Sized(nn.Embedding):
        def forward(self, shape):
            return super().forward(torch.arange(shape[1]))

    class OfIds(nn.Embedding):
        def forward(self, ids):
            return super().forward(torch.arange(ids.shape[1]).expand(ids.shape))

    def __init__(self):
        super().__init__()
        self.sized, self.of_ids = self.Sized(16, 4), self.OfIds(16, 4)

    def forward(self, i):
        return self.a((self.e(i) + self.sized(i.shape) + self.of_ids(i)).mean(1))


CASES = {
    "twice": (Twice, IDS),
    "two tables": (TwoTables, IDS),
    "siamese": (Siamese, (IDS, IDS.clone())),
    "time first": (TimeFirst, IDS),
    "flattened": (Flattened, IDS),
    "step by step": (StepByStep, IDS),
    "shifted": (Shifted, IDS),
    "shifted, all the same": (Shifted, torch.full((2, 5), 3)),
    "columns": (Columns, IDS),
    "positions": (Positions, {"input_ids": IDS, "position_ids": torch.arange(5).expand(2, 5)}),
    "own positions": (OwnPositions, IDS),
}


def by_hand(model, x):
    """Gradient of the score by every looked-up row, summed over the features and the calls: hooks on the tables."""
    rows = []

    def hook(module, args, output):
        if isinstance(args[0], torch.Tensor) and not isinstance(module, (OwnPositions.Sized, OwnPositions.OfIds)):
            output.retain_grad()
            rows.append((args[0], output))

    for table in (model.e, model.e2):
        table.register_forward_hook(hook)
    out = model(**x) if isinstance(x, dict) else model(*x) if isinstance(x, tuple) else model(x)
    out[:, 1].sum().backward()
    return [(ids, output.grad.sum(-1)) for ids, output in rows]


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_all_calls(name):
    kind, x = CASES[name]
    result = saliency(kind(), x, target=1, method="gradient")
    values = result.values if isinstance(result.values, dict) else {"0": result.values}
    assert all(value.shape == (2, 5) for value in values.values())
    assert not isinstance(x, dict) or len(values) == 1  # the words, not the positions
    calls = by_hand(kind(), x)
    if name == "siamese":
        expected = [gradient for _, gradient in calls]
        assert len(values) == 2
    elif name == "step by step":
        expected = [torch.stack([gradient for _, gradient in calls] + [torch.zeros(2)], 1)]
    elif name == "time first":
        expected = [calls[0][1].t()]
    else:
        expected = [sum(gradient.reshape(2, 5) for _, gradient in calls)]
    for found, wanted in zip(values.values(), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", CASES)
def test_every_method_takes_them(name):
    kind, x = CASES[name]
    for method in ("integrated_gradients", "smooth_grad"):
        saliency(kind(), x, target=1, method=method)
    result = relevance(kind(), x, target=1)
    assert float(result.ledger.relative.max()) < 1e-5
    sensitivity(kind(), x, draws=2)


def test_ids_that_no_table_reads_are_an_error():
    class Hashed(Base):
        def forward(self, i):
            return self.a(self.e(i * 7 % 30).mean(1))

    with pytest.raises(errors.InputError, match=r"no nn\.Embedding of Hashed reads 0"):
        saliency(Hashed(), IDS, target=0, method="gradient")
    with pytest.raises(errors.InputError, match=r"it runs with x\.float\(\)"):
        saliency(nn.Conv2d(3, 2, 3), torch.ones(1, 3, 5, 5, dtype=torch.int64), target=0, method="gradient")


def test_a_float_input_named_mask_counts_when_it_is_the_only_one():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(3, 2)

        def forward(self, mask):
            return self.f(mask)

    assert saliency(Masked(), {"mask": torch.ones(2, 3)}, target=0, method="gradient").values.shape == (2, 3)


class Graph(nn.Module):
    """Two rounds of messages along edges; a weight for each node, and a category that is looked up in a table."""

    def __init__(self, spelling):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.kinds, self.spelling = nn.Linear(3, 4), nn.Linear(4, 2), torch.randn(5, 3), spelling

    def forward(self, nodes, edges, kind):
        return torch.stack([self.one(*sample) for sample in zip(nodes, edges, kind, strict=True)])

    def one(self, nodes, edges, kind):
        sent, got = edges[0].long(), edges[1].long()
        x = nodes + self.kinds[kind]
        for layer in (self.a, self.b):
            x = layer(x)
            messages = x.index_select(0, sent) if self.spelling == "index_add" else x[sent]
            if self.spelling == "index_add":
                x = torch.zeros_like(x).index_add(0, got, messages).relu()
            else:
                x = torch.zeros_like(x).scatter_add(0, got[:, None].expand_as(messages), messages).relu()
        return x.sum(0)


@pytest.mark.parametrize(
    ("spelling", "method"), [("index_add", "feature_ablation"), ("scatter_add", "shapley_sampling")]
)
def test_an_input_that_indexes_another_is_held_fixed(spelling, method):
    edges = torch.tensor(
        [[[0, 1, 2, 3], [1, 2, 3, 0]]], dtype=torch.int32
    )  # with zeros instead, the model runs as well
    given = (torch.randn(1, 4, 3), edges, torch.tensor([[1, 2, 0, 4]]))
    found = saliency(Graph(spelling), given, target=0, method=method)
    assert set(found.values) == {"0", "2"}, "nodes and kinds, which are looked up in a table of the model"
    assert found.settings["hold"] == "1"


def test_lengths_that_say_which_step_is_read_are_held_fixed():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(3, 2)

        def forward(self, x, lengths):
            return self.f(x)[torch.arange(len(x)), lengths - 1]

    found = saliency(Last(), (torch.rand(2, 4, 3), torch.tensor([4, 2])), target=0, method="feature_ablation")
    assert found.settings["hold"] == "1" and found.tensor.shape == (2, 4, 3)
    assert found.tensor.abs().sum(dim=2).argmax(dim=1).tolist() == [3, 1]
