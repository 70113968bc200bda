import pytest
import torch
from torch import nn

from layerlens.axes.names import axes_of

IMAGE = ("batch", "channel", "height", "width")


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Conv1d(1, 1, 1), (2, 3, 4), ("batch", "channel", "length")),
        (nn.Conv2d(1, 1, 1), (2, 3, 4, 5), IMAGE),
        (nn.Conv2d(1, 1, 1), (3, 4, 5), None),
        (nn.ConvTranspose3d(1, 1, 1), (2, 3, 4, 5, 6), ("batch", "channel", "depth", "height", "width")),
        (nn.BatchNorm2d(3), (2, 3, 4, 5), IMAGE),
        (nn.MaxPool2d(2), (2, 3, 4, 5), IMAGE),
        (nn.Linear(1, 1), (2, 3), ("batch", "feature")),
        (nn.Linear(1, 1), (2, 7, 3), ("batch", "token", "feature")),
        (nn.Linear(1, 1), (3,), None),
        (nn.LayerNorm(3), (2, 7, 3), ("batch", "token", "feature")),
        (nn.Embedding(4, 3), (2, 7, 3), ("batch", "token", "feature")),
        (nn.LSTM(1, 3, batch_first=True), (2, 7, 3), ("batch", "time", "feature")),
        (nn.GRU(1, 3), (7, 2, 3), ("time", "batch", "feature")),
        (nn.GRU(1, 3), (7, 3), ("time", "feature")),
        (nn.MultiheadAttention(4, 2, batch_first=True), (2, 7, 4), ("batch", "token", "feature")),
        (nn.MultiheadAttention(4, 2), (7, 4), None),
        (nn.ReLU(), (2, 3, 4, 5), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_axes_are_named_where_the_layer_tells(module, shape, expected):
    assert axes_of(module, torch.zeros(shape)) == expected
