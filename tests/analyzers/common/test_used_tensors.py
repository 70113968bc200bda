"""Which tensors of a layer the model reads, in models that recompute their blocks and with exchanged weights."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from layerlens.analyzers.common.calls.used_tensors import used_tensors
from layerlens.analyzers.common.null_model import shuffled
from layerlens.inputs.inputs import as_inputs
from tests.cases import normal


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.first(x).tanh(), self.second(x).tanh()


class Recomputed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.pair, self.out, self.reentrant = Pair(), nn.Linear(4, 2), reentrant

    def block(self, x):
        return self.out(torch.relu(self.pair(x)[1]))

    def forward(self, x):
        return checkpoint(self.block, x * self.out.weight.sum(), use_reentrant=self.reentrant)


@pytest.mark.parametrize("exchange", [False, True])
def test_a_checkpointed_block_with_exchanged_weights_reads_what_it_reads(exchange):
    model = Recomputed(reentrant=False)
    forward = shuffled(model, None, 0) if exchange else None
    assert used_tensors(model, as_inputs(normal(3, 4)), forward, "pair") == {("pair", 0): ["1"]}


def test_where_no_graph_shows_it_all_count_and_a_warning_says_so():
    with pytest.warns(UserWarning, match="runs without gradients .* all count. Name one: 'pair/0', 'pair/1'"):
        found = used_tensors(Recomputed(reentrant=True), as_inputs(normal(3, 4)), None, "pair")
    assert found == {("pair", 0): ["0", "1"]}
