"""The blocks that are measured where a model has many layers, found by what ran, not by names of classes."""

import pytest
import torch
from torch import nn

from layerlens import Lens
from layerlens.analyzers.common.calls.blocks import usual_layers
from layerlens.inputs.inputs import as_inputs


class Block(nn.Module):
    def __init__(self, wide):
        super().__init__()
        self.first, self.rest = nn.Linear(wide, wide), nn.Sequential(*(nn.Tanh() for _ in range(5)))

    def forward(self, x):
        return x + self.rest(self.first(x))


class Stages(nn.Module):
    """Stages of 6, 1 and 4 blocks of different width, and a second list whose names end in a number."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Linear(4 + index, 5 + index), nn.ModuleDict({"blocks": nn.Sequential(*blocks)})["blocks"])
            for index, blocks in enumerate(
                [[Block(5 + at) for _ in range(count)] for at, count in enumerate((6, 1, 4))]
            )
        )
        self.head = nn.Linear(7, 2)

    def forward(self, x):
        for stage in self.stages:
            x = stage(x)
        return self.head(x)


def test_blocks_of_every_stage_are_measured_and_the_rest_is_said():
    model, x = Stages(), torch.randn(2, 4)
    blocks = [f"stages.{stage}.1.{block}" for stage, count in enumerate((6, 1, 4)) for block in range(count)]
    assert len(list(model.modules())) > 65
    with pytest.warns(UserWarning, match=r'only the 11 blocks of Stages are measured.*without 88 other layers.*"\*\*"'):
        found = Lens(model).ablate(x, target=0)
    assert list(found.layers) == blocks
    every = Lens(model).ablate(x, "**", target=0)
    assert len(every) > 60
    for name in blocks:  # the same numbers as when all are measured
        assert float(found.values[found.layers.index(name)]) == pytest.approx(
            float(every.values[every.layers.index(name)]), abs=1e-6
        )
    with pytest.warns(UserWarning, match="only the 11 blocks"):
        assert list(Lens(model).patch(x, torch.randn(2, 4), target=0).layers) == blocks


def test_few_layers_and_models_without_blocks_are_measured_whole():
    assert usual_layers(Block(3), as_inputs(torch.randn(2, 3)), None, 0) is None
    assert (
        usual_layers(nn.Sequential(*(nn.Linear(3, 3) for _ in range(70))), as_inputs(torch.randn(2, 3)), None, 0)
        is None
    )
