"""Objects with masks: pictures in which the place of the object is known."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.signatures import public

from .task import Task

SIDE, OBJECT = 28, 7
"""Pixels of a picture's and of an object's side."""


def templates() -> torch.Tensor:
    """Return four shapes of the same number of pixels, `(4, 7, 7)`: a plus, a frame's corner, stripes, a diagonal."""
    shapes = torch.zeros(4, OBJECT, OBJECT)
    shapes[0, 3, :] = shapes[0, :, 3] = 1
    shapes[1, 0, :] = shapes[1, :, 0] = 1
    shapes[2, 1, :] = shapes[2, 5, :] = 1
    shapes[3] = torch.eye(OBJECT) + torch.diag(torch.ones(OBJECT - 1), 1)
    return shapes / shapes.flatten(1).sum(dim=1)[:, None, None]


class Finder(nn.Module):
    """A network made by hand: it compares every place with every template and takes the best place of each.

    Scores `(batch, 4)`: the maximum over places of relu(correlation - threshold).
    """

    def __init__(self) -> None:
        super().__init__()
        self.compare = nn.Conv2d(1, 4, OBJECT)
        shapes = templates()
        surround = (shapes == 0).float()
        with torch.no_grad():
            self.compare.weight.copy_((shapes - surround / surround.flatten(1).sum(dim=1)[:, None, None]).unsqueeze(1))
            nn.init.constant_(self.compare.bias, -0.5)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores of pictures `(batch, 1, height, width)`."""
        best: torch.Tensor = torch.relu(self.compare(x)).amax(dim=(2, 3))
        return best


@public
def masked_objects(batch: int = 16, *, seed: int = 0) -> Task:
    """Make a task of two different objects in each picture, on faint noise; the map must lie on one of them.

    The model is made by hand, not trained, so it is certain that its score for a class depends on the pixels under that
    class's object and on no others.

    Args:
        batch: number of pictures.
        seed: seed of places and noise.

    Example:
        >>> task = masked_objects(batch=4)
        >>> bool((task.score("input_x_gradient")["pointing_game"] == 1).all())
        True
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = templates() > 0
    x = 0.2 * torch.rand(batch, 1, SIDE, SIDE, generator=generator)
    masks = torch.zeros(batch, SIDE, SIDE, dtype=torch.bool)
    target = torch.zeros(batch, dtype=torch.long)
    for row in range(batch):
        first, other = torch.randperm(4, generator=generator)[:2].tolist()
        swapped = bool(torch.rand(1, generator=generator) < 0.5)
        for index, shape in enumerate((first, other)):
            across = int(torch.randint(0, SIDE // 2 - OBJECT, (1,), generator=generator))
            across += SIDE // 2 if bool(index) ^ swapped else 0
            down = int(torch.randint(0, SIDE - OBJECT, (1,), generator=generator))
            place = (slice(down, down + OBJECT), slice(across, across + OBJECT))
            x[row, 0][place] = torch.where(shapes[shape], 1.0, x[row, 0][place])
            if index == 0:
                masks[row][place] = True
        target[row] = first
    why = "the score is one correlation with the pixels of the mask"
    return Task("masked objects", Finder().eval(), x, target, None, masks, why)
