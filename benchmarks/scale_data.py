"""Data sets for the measurements of scale: made when they are read, the same sample at the same number."""

import torch
from torch.utils.data import Dataset

from layerlens.demo.efficientnet import SIDE, photographs
from layerlens.demo.embedded import sample_pictures


class Digits(Dataset):
    """The packaged pictures of digits, again and again with other noise."""

    def __init__(self, count: int) -> None:
        self.count, self.pictures = count, sample_pictures()[0]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = torch.randn(self.pictures.shape[1:], generator=torch.Generator().manual_seed(index))
        return self.pictures[index % len(self.pictures)] + 0.05 * noise


class Crops(Dataset):
    """Squares out of the packaged photographs, at places and sizes that depend on the number of the sample."""

    def __init__(self, count: int) -> None:
        import numpy as np

        self.count = count
        self.photographs = [torch.tensor(np.asarray(p.convert("RGB"))).permute(2, 0, 1) for p in photographs().values()]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        picture = self.photographs[index % len(self.photographs)]
        generator = torch.Generator().manual_seed(index)
        side = int(torch.randint(96, min(picture.shape[1:]) + 1, (1,), generator=generator))
        top, left = (int(torch.randint(0, size - side + 1, (1,), generator=generator)) for size in picture.shape[1:])
        crop = picture[:, top : top + side, left : left + side].unsqueeze(0).float() / 255
        crop = torch.nn.functional.interpolate(crop, (SIDE, SIDE), mode="bilinear", antialias=True)[0]
        return (crop - 0.498) / 0.5  # as the weights of EfficientNet-Lite want it
