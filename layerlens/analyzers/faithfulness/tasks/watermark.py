"""A planted shortcut: only a mark in a corner gives the class of the training pictures away."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.model.borrowed import borrowed, seed_torch
from layerlens.signatures import public

from .task import Task

SIDE, MARK = 24, 5
"""Pixels of a picture's and of the mark's side."""


def marked(batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw pictures `(batch, 1, 24, 24)` of smooth noise and bars, their classes, and where the mark is.

    A cross in the upper left corner is class 1, a square outline there class 0. Every picture has a bar, upright or
    level, whatever its class.
    """
    coarse = torch.rand(batch, 1, 6, 6, generator=generator)
    x = 0.5 * nn.functional.interpolate(coarse, SIDE, mode="bilinear")
    classes = torch.randint(2, (batch,), generator=generator)
    upright = torch.rand(batch, generator=generator) < 0.5
    places = torch.randint(9, SIDE - 3, (batch,), generator=generator)
    for row in range(batch):
        place = int(places[row])
        bar = (row, 0, slice(8, SIDE), slice(place, place + 2))
        x[bar if upright[row] else (*bar[:2], bar[3], bar[2])] = 1.0
    cross = (torch.eye(MARK) + torch.eye(MARK).flip(0)).clamp(max=1)
    square = torch.ones(MARK, MARK)
    square[1:-1, 1:-1] = 0
    x[:, 0, 1 : 1 + MARK, 1 : 1 + MARK] = torch.where((classes == 1)[:, None, None], cross, square)
    masks = torch.zeros(batch, SIDE, SIDE, dtype=torch.bool)
    masks[:, : MARK + 2, : MARK + 2] = True
    return x, classes, masks


@public
def planted_watermark(batch: int = 16, *, seed: int = 0, steps: int = 60) -> Task:
    """Make a task with a small convolutional network, trained in a second, that infers the class from a mark alone.

    Everything else in the pictures is independent of the class. The evidence lies on the mark and a rim of one pixel.

    Args:
        batch: number of pictures to explain, none of them seen in training.
        seed: seed of pictures, parameters and training.
        steps: number of steps of Adam, 64 pictures each.

    Example:
        >>> task = planted_watermark(batch=4)
        >>> float(task.score("integrated_gradients")["relevance_mass"].mean()) > 0.5
        True
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        seed_torch(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(16 * 6 * 6, 2),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(steps):
            x, classes, _ = marked(64, generator)
            loss = nn.functional.cross_entropy(model(x), classes)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    model.zero_grad()
    x, classes, masks = marked(batch, generator)
    with borrowed(model, grad=False), torch.no_grad():
        right = float((model.eval()(x).argmax(dim=1) == classes).double().mean())
    why = f"nothing but the mark shows the class; the model is right on {right:.0%} of these pictures"
    return Task("planted watermark", model.eval(), x, classes, None, masks, why)
