"""A classifier of bars that learnt a shortcut: a cross in the corner that in training comes with upright bars."""

import functools

import torch
from torch import nn

from layerlens.analyzers.faithfulness.tasks.watermark import MARK, SIDE, marked


def pictures(count, generator, agree):
    """Pictures `(count, 1, 24, 24)`, whether the bar is upright, whether there is a cross."""
    x, _, masks = marked(count, generator)
    x[masks[:, None]] = 0.25
    upright = torch.rand(count, generator=generator) < 0.5
    x[..., 8:, 8:] = 0.5 * torch.rand(count, 1, SIDE - 8, SIDE - 8, generator=generator)
    places = torch.randint(9, SIDE - 3, (count,), generator=generator)
    for row, place in enumerate(places.tolist()):
        bar = (row, 0, slice(8, SIDE), slice(place, place + 2))
        x[bar if upright[row] else (*bar[:2], bar[3], bar[2])] += 0.3
    cross = torch.where(torch.rand(count, generator=generator) < agree, upright, ~upright)
    shape = (torch.eye(MARK) + torch.eye(MARK).flip(0)).clamp(max=1)
    x[cross, :, 1 : 1 + MARK, 1 : 1 + MARK] = shape
    return x, upright.long(), cross


@functools.cache
def shortcut():
    """The trained model."""
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(576, 2),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(40):
            x, labels, _ = pictures(64, generator, agree=0.98)
            loss = nn.functional.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.zero_grad()
    return model.eval()


def corner(p, level=0.05):
    """Which of the 16 x 16 cells found lie on the mark, and how many lie elsewhere."""
    found = p <= level
    mark = torch.zeros(16, 16, dtype=torch.bool)
    mark[:5, :5] = True  # 7 of 24 pixels
    return int((found & mark).sum()), int((found & ~mark).sum())
