"""A sparse autoencoder of the k largest codes, and its training on rows of units."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.progress import track

ROWS = 1024
"""Rows of a step of training."""

IDLE = 50
"""Steps without use after which a feature is trained on what all others leave."""

RATE = 2e-3
"""Largest learning rate of Adam; it falls to zero over the second half of the training."""


class SparseAutoencoder(nn.Module):
    """A dictionary of directions, of which each row takes the k with the largest positive codes.

    With b a shift, s a scale, W the encoder and D the dictionary, codes = TopK(ReLU(W (h - b) / s)) and
    h ~ s D^T codes + b (Gao et al. 2024, "Scaling and evaluating sparse autoencoders", eq. 1).

    Args:
        units: number of units of the layer.
        features: number of features.
        active: k, the number of codes that a row keeps.

    Example:
        >>> sae = SparseAutoencoder(4, 16, active=2)
        >>> sae.decode(sae.encode(torch.ones(3, 4))).shape
        torch.Size([3, 4])
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, units: int, features: int, active: int) -> None:
        super().__init__()
        self.active = active
        self.encoder, self.decoder = (
            nn.Parameter(torch.zeros(features, units)),
            nn.Parameter(torch.eye(features, units)),
        )
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("shift", torch.zeros(units))
        self.register_buffer("scale", torch.ones(()))

    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the codes `(rows, features)` of `(rows, units)`."""
        return self.largest(self._before((rows - self.shift) / self.scale))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return `(rows, units)` of the codes."""
        return codes @ self.decoder * self.scale + self.shift

    def largest(self, before: torch.Tensor) -> torch.Tensor:
        """Return the `active` largest values of each row, and 0 for all others."""
        best = before.topk(min(self.active, before.shape[1]), dim=1)
        return torch.zeros_like(before).scatter(1, best.indices, best.values)

    def _before(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.relu(rows @ self.encoder.T + self.bias)

    def fit(self, rows: torch.Tensor, steps: int, seed: int = 0, progress: bool | None = None) -> None:
        """Train on rows `(rows, units)`: squared error, and for idle features that of the error that others leave.

        Args:
            rows: the rows.
            steps: number of steps of Adam, on `ROWS` rows each.
            seed: seed of the start and of the choice of rows.
            progress: whether a bar is shown.
        """
        draw = torch.Generator().manual_seed(seed)
        with torch.inference_mode(False), torch.enable_grad():
            rows = rows.float()
            self._start(rows, draw)
            own = list(self.parameters())
            optimizer = torch.optim.Adam(own, lr=RATE, betas=(0.9, 0.99))
            idle = torch.zeros(len(self.decoder), dtype=torch.long)
            for step in track(range(steps), "training a sparse autoencoder", enabled=progress):
                optimizer.param_groups[0]["lr"] = RATE * min(1.0, 2 * (1 - step / steps))
                chosen = torch.randint(len(rows), (min(ROWS, len(rows)),), generator=draw)
                batch = (rows[chosen] - self.shift) / self.scale
                before = self._before(batch)
                codes = self.largest(before)
                idle = torch.where((codes.detach() > 0).any(dim=0), 0, idle + 1)
                error = batch - codes @ self.decoder
                loss = error.square().sum(dim=1).mean()
                if bool((idle > IDLE).any()):  # Gao et al. 2024, appendix A.2: auxiliary loss of features that are idle
                    rest = self.largest(before * (idle > IDLE)) @ self.decoder
                    loss = loss + (error.detach() - rest).square().sum(dim=1).mean() / 32
                for parameter, slope in zip(own, torch.autograd.grad(loss, own), strict=True):
                    parameter.grad = slope
                optimizer.step()
                with torch.no_grad():
                    self.decoder.div_(self.decoder.norm(dim=1, keepdim=True).clamp_min(1e-8))
        for parameter in own:
            parameter.grad = None

    def _start(self, rows: torch.Tensor, draw: torch.Generator) -> None:
        """Start with random directions of length 1, and rows of mean 0 and a mean square of 1 a unit."""
        with torch.no_grad():
            self.shift.copy_(rows.mean(dim=0))
            self.scale.copy_((rows - self.shift).square().mean().sqrt().clamp_min(1e-8))
            first = torch.randn(self.decoder.shape, generator=draw)
            self.decoder.copy_(first / first.norm(dim=1, keepdim=True))
            self.encoder.copy_(self.decoder)
            self.bias.zero_()
