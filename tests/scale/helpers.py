"""A small network over small data, and what a plain loop makes of it."""

import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 4)).eval()


def pictures(count=21):
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(1))


class Broken(torch.utils.data.Dataset):
    """Pictures of which some cannot be read, and some make the analysis fail."""

    def __init__(self, unreadable=(), nan=()):
        self.data, self.unreadable, self.nan = pictures(), unreadable, nan

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        if index in self.unreadable:
            raise OSError(f"picture {index} is cut off")
        return self.data[index] * float("nan") if index in self.nan else self.data[index]
