"""Curves of a padded batch against those of each sample alone, without padding."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from layerlens.faithfulness import comprehensiveness, deletion, insertion, sufficiency
from tests.cases import normal

LENGTHS, PLACES = (6, 3, 4), 6
METRICS: dict[str, Callable[..., object]] = {
    one.__name__: functools.partial(one, measure="score") for one in (insertion, deletion)
} | {one.__name__: one for one in (comprehensiveness, sufficiency)}


class Masked(nn.Module):
    """Reads each place that the mask holds, and its number among these."""

    def __init__(self, ids):
        super().__init__()
        self.embed = nn.Embedding(20, 5) if ids else nn.Identity()
        self.rnn, self.out = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, input_ids, attention_mask):
        used = attention_mask.unsqueeze(-1)
        weight = torch.cos(attention_mask.cumsum(1)).unsqueeze(-1) * used
        return self.out(torch.tanh((torch.tanh(self.rnn(self.embed(input_ids))) * weight).sum(1)))


def padded(ids, side):
    """Return three samples of several lengths, and a map of them with ties."""
    mask = torch.zeros(3, PLACES, dtype=torch.int64)
    for row, length in enumerate(LENGTHS):
        mask[row, PLACES - length if side == "left" or (side == "both" and row == 1) else 0 :][:length] = 1
    values = torch.arange(3 * PLACES).reshape(3, PLACES) % 17 if ids else normal(3, PLACES, 5).double()
    where = (mask > 0) if ids else (mask > 0).unsqueeze(-1)
    scores = torch.where(mask > 0, (normal(3, PLACES, seed=4) * 2).round().double(), torch.tensor(9.0).double())
    return {"input_ids": torch.where(where, values, 18), "attention_mask": mask}, scores


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("ids", [True, False], ids=["ids", "series"])
@pytest.mark.parametrize("fill", ["zero", "noise"])
@pytest.mark.parametrize("metric", METRICS)
def test_a_padded_batch_is_its_samples(metric, fill, ids, side):
    torch.manual_seed(0)
    model, (x, scores) = Masked(ids).double().eval(), padded(ids, side)
    options = {"steps": 7} if metric in ("insertion", "deletion") else {"shares": (0.1, 0.3, 0.5, 0.9)}
    found = METRICS[metric](model, x, scores, target=1, fill=fill, **options)
    for row in range(3):
        used = x["attention_mask"][row] > 0
        alone = {name: part[row : row + 1, used] for name, part in x.items()}
        own = METRICS[metric](model, alone, scores[row : row + 1, used], target=1, fill=fill, **options)
        if isinstance(found, torch.Tensor):
            torch.testing.assert_close(found[row], own[0], rtol=1e-12, atol=1e-12)
        else:
            torch.testing.assert_close(found.scores[row], own.scores[0], rtol=1e-12, atol=1e-12)


def test_a_removed_place_is_a_place_of_the_sample():
    torch.manual_seed(0)
    model, (x, _) = Masked(ids=False).double().eval(), padded(ids=False, side="right")
    scores = normal(3, PLACES, seed=4).double()
    found = deletion(model, x, scores, target=1, measure="score", steps=3).scores[1]  # of a sample with three places
    values, used = x["input_ids"][1:2, :3].clone(), x["attention_mask"][1:2, :3]
    order = scores[1, :3].argsort(descending=True)
    for step in range(4):
        torch.testing.assert_close(found[step], model(values, used)[0, 1].detach(), rtol=1e-12, atol=1e-12)
        if step < 3:
            values[0, order[step]] = 0
