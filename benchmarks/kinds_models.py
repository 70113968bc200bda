"""Small models of each kind of input, and tasks for them with a planted answer, made in seconds."""

# mypy: disable-error-code="no-any-return,no-untyped-call"
from __future__ import annotations

import itertools
import math

import torch
from torch import nn
from torch.nn import functional as F

SIDE, PATCH, WIDTH, STEPS, SAMPLES = 24, 4, 48, 96, 2048


class Attending(nn.Module):
    """Two transformer blocks on the tokens that a stem makes of a picture; `mixture` has convolutions in the stem."""

    def __init__(self, mixture: bool) -> None:
        super().__init__()
        patches: nn.Module = nn.Conv2d(1, WIDTH, PATCH, stride=PATCH)
        if mixture:
            patches = nn.Sequential(
                nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, WIDTH, 3, stride=2, padding=1)
            )
        self.patches = patches
        self.places = nn.Parameter(0.1 * torch.randn(1, (SIDE // PATCH) ** 2, WIDTH))
        block = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 3) of pictures (batch, 1, 24, 24)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


class Steps(nn.Module):
    """Two transformer blocks on the steps of a series (batch, time, feature)."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Conv1d(3, WIDTH, 5, padding=2)
        block = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 2) of a series (batch, time, 3)."""
        return self.head(self.blocks(self.read(x.transpose(1, 2)).transpose(1, 2)).amax(dim=1))


class Asked(nn.Module):
    """Answers which color the named quadrant of a picture has: tokens of the picture before those of the question."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.words = nn.Conv2d(3, WIDTH, 4, stride=4), nn.Embedding(12, WIDTH)
        self.places = nn.Parameter(0.1 * torch.randn(1, 16 + 5, WIDTH))
        block = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 3) of pictures (batch, 3, 16, 16) and words (batch, 5)."""
        seen = self.patches(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat([seen, self.words(input_ids)], dim=1) + self.places
        return self.head(self.blocks(tokens)[:, -1])


class Recurrent(nn.Module):
    """An LSTM on a series (batch, time, feature), whose states are pooled by their largest values."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 24, batch_first=True), nn.Linear(24, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 2) of a series (batch, time, 3)."""
        return self.head(self.rnn(x)[0].amax(dim=1))


class Hybrid(nn.Module):
    """Convolutions over a series (batch, channel, time), and a GRU or an LSTM over what they find, pooled as above."""

    def __init__(self, channels: int, classes: int, kernel: int, stride: int, rnn: type[nn.GRU | nn.LSTM]) -> None:
        super().__init__()
        self.read = nn.Conv1d(channels, 16, kernel, stride=stride, padding=kernel // 2)
        self.rnn, self.head = rnn(16, 24, batch_first=True), nn.Linear(24, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, classes) of a series (batch, channel, time)."""
        return self.head(self.rnn(self.read(x).relu().transpose(1, 2))[0].amax(dim=1))


class Placed(nn.Module):
    """Convolutions with a stride over a series, and two transformer blocks that know the places."""

    def __init__(self, channels: int, classes: int, length: int, stride: int, last: bool = False) -> None:
        super().__init__()
        self.last = last  # whether the axis of the channels is the last one
        read = nn.Conv1d(channels, 16, 2 * stride + 1, stride=stride, padding=stride)
        self.read = nn.Sequential(read, nn.ReLU(), nn.Conv1d(16, WIDTH, 3, padding=1))
        self.places = nn.Parameter(0.1 * torch.randn(1, -(-length // stride), WIDTH))
        block = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, classes) of a series (batch, channel, time), or (batch, time, channel)."""
        steps = self.read(x.transpose(1, 2) if self.last else x).transpose(1, 2)
        return self.head(self.norm(self.blocks(steps + self.places)).mean(dim=1))


class Gated(nn.Module):
    """A GRU or an LSTM on a series (batch, time, feature): its last state, or the mean or the largest of its states."""

    def __init__(
        self, channels: int, classes: int, rnn: type[nn.GRU | nn.LSTM], read: str = "last", both: bool = False
    ) -> None:
        super().__init__()
        self.rnn, self.how = rnn(channels, 24, batch_first=True, bidirectional=both), read
        self.head = nn.Linear(48 if both else 24, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, classes) of a series (batch, time, feature)."""
        states = self.rnn(x)[0]
        if self.how == "last":
            return self.head(states[:, -1])
        return self.head(states.mean(dim=1) if self.how == "mean" else states.amax(dim=1))


class Residual(nn.Module):
    """Three residual blocks with BatchNorm over a series, each pooled by two, and the mean over time."""

    def __init__(self, channels: int, classes: int, width: int = 16) -> None:
        super().__init__()
        sizes = (channels, width, 2 * width, 2 * width)
        self.blocks = nn.ModuleList(self._block(*pair) for pair in itertools.pairwise(sizes))
        self.across = nn.ModuleList(nn.Conv1d(*pair, 1) for pair in itertools.pairwise(sizes))
        self.head = nn.Linear(sizes[-1], classes)

    @staticmethod
    def _block(taken: int, given: int) -> nn.Module:
        layers: list[nn.Module] = []
        for inner, kernel in ((taken, 7), (given, 5)):
            layers += [nn.Conv1d(inner, given, kernel, padding=kernel // 2), nn.BatchNorm1d(given), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, classes) of a series (batch, channel, time)."""
        for block, across in zip(self.blocks, self.across, strict=True):
            x = F.max_pool1d((block(x) + across(x)).relu(), 2)
        return self.head(x.mean(dim=2))


class Spectral(nn.Module):
    """Reads a waveform (batch, samples) by its spectrogram."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(33, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten())
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 3) of waveforms (batch, samples)."""
        window = torch.hann_window(64, device=x.device)
        seen = torch.stft(x, 64, 32, window=window, return_complex=True).abs()
        return self.head(self.net(torch.log1p(seen)))


class Hard(nn.Module):
    """A trained model that reads its input through steps, which no gradient passes."""

    def __init__(self, model: nn.Module, levels: int) -> None:
        super().__init__()
        self.model, self.levels = model, levels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the model makes of its input in whole steps."""
        return self.model((x * self.levels).round() / self.levels)


def convolutional(channels: int, classes: int, kernel: int, stride: int, hidden: int = 0) -> nn.Module:
    """A network of two convolutions over time, with a hidden layer behind them if it has units."""
    head: list[nn.Module] = [nn.Linear(16, hidden), nn.ReLU()] if hidden else []
    return nn.Sequential(
        nn.Conv1d(channels, 16, kernel, stride=stride, padding=kernel // 2), nn.ReLU(),
        nn.Conv1d(16, 16, 5, stride=2, padding=2), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(),
        *head, nn.Linear(hidden or 16, classes),
    )  # fmt: skip


def averaged(channels: int, classes: int) -> nn.Module:
    """A network of two convolutions over time and the mean of what they find."""
    return nn.Sequential(
        nn.Conv1d(channels, 16, 9, padding=4), nn.ReLU(), nn.Conv1d(16, 32, 7, padding=3), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, classes),
    )  # fmt: skip


def flattened(channels: int, classes: int, length: int) -> nn.Module:
    """A network of strided convolutions whose head sees all places."""
    return nn.Sequential(
        nn.Conv1d(channels, 16, 9, stride=4, padding=4), nn.ReLU(),
        nn.Conv1d(16, 16, 5, stride=2, padding=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * -(-length // 8), classes),
    )  # fmt: skip


def perceptron(columns: int, outputs: int) -> nn.Module:
    """A network for tables, with a hidden layer of 12."""
    return nn.Sequential(
        nn.Linear(columns, 32), nn.ReLU(), nn.Linear(32, 12), nn.Tanh(), nn.Linear(12, outputs)
    )  # fmt: skip


def scenes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures (n, 1, 24, 24) of a digit 0, 1 or 4 among fragments of other digits, which one, and its ink (n, 24, 24).

    Pictures of an even and of an odd seed show different handwritten digits.
    """
    from sklearn.datasets import load_digits

    bunch, draw = load_digits(), torch.Generator().manual_seed(seed)
    ink = torch.from_numpy(bunch.images / 16).float()[seed % 2 :: 2]
    digits = torch.from_numpy(bunch.target)[seed % 2 :: 2]
    label = torch.randint(3, (count,), generator=draw)
    x, mask = torch.zeros(count, 1, SIDE, SIDE), torch.zeros(count, SIDE, SIDE, dtype=torch.bool)

    def drawn(pool: torch.Tensor) -> torch.Tensor:
        return ink[pool[torch.randint(len(pool), (1,), generator=draw)]][0]

    own = [(digits == digit).nonzero()[:, 0] for digit in (0, 1, 4)]
    others = ((digits != 0) & (digits != 1) & (digits != 4)).nonzero()[:, 0]
    for row in range(count):
        for _ in range(4):
            top, left, high, wide = torch.randint(5, (4,), generator=draw).tolist()
            place = (slice(4 * high, 4 * high + 4), slice(4 * wide, 4 * wide + 4))
            x[row, 0][place] += 0.5 * drawn(others)[top : top + 4, left : left + 4]
        top, left = torch.randint(SIDE - 7, (2,), generator=draw).tolist()
        place = (slice(top, top + 8), slice(left, left + 8))
        digit = drawn(own[int(label[row])])
        x[row, 0][place] = torch.maximum(x[row, 0][place], digit)
        mask[row][place] = digit > 0.25
    return x.clamp(max=1), label, mask


def questions(count: int, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Pictures of four colored quadrants, a question of five words, the answer, and the quadrant (n, 16, 16)."""
    draw = torch.Generator().manual_seed(seed)
    colors = torch.randint(3, (count, 4), generator=draw)
    asked = torch.randint(4, (count,), generator=draw)
    place = torch.randint(4, (count,), generator=draw)
    words = torch.randint(4, 12, (count, 5), generator=draw)
    words[torch.arange(count), place] = asked  # the words 0 to 3 name a quadrant
    image = F.one_hot(colors, 3).float().transpose(1, 2).reshape(count, 3, 2, 2)
    image = image.repeat_interleave(8, 2).repeat_interleave(8, 3) + 0.1 * torch.randn(count, 3, 16, 16, generator=draw)
    mask = F.one_hot(asked, 4).reshape(count, 2, 2).repeat_interleave(8, 1).repeat_interleave(8, 2) > 0
    return {"pixel_values": image, "input_ids": words}, colors.gather(1, asked[:, None])[:, 0], mask


def events(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Series (n, time, 3) with a wave whose order, up and down or down and up, is the class; waves of other channels.

    The last are the places of the wave, (n, time).
    """
    draw = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.randn(count, STEPS, 3, generator=draw)
    label = torch.randint(2, (count,), generator=draw)
    wave = torch.sin(torch.linspace(0, 2 * torch.pi, 16))
    mask = torch.zeros(count, STEPS, dtype=torch.bool)
    for row in range(count):
        starts = torch.randint(STEPS - 16, (3,), generator=draw).tolist()
        signs = 1 - 2 * torch.randint(2, (3,), generator=draw)
        signs[0] = 1 - 2 * label[row]
        for channel, start in enumerate(starts):
            x[row, start : start + 16, channel] += signs[channel] * wave
        mask[row, starts[0] : starts[0] + 16] = True
    return x, label, mask


def tones(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Waveforms (n, samples) of noise with a short tone of one of three pitches, the class, and a tone of a fourth."""
    draw = torch.Generator().manual_seed(seed)
    x, label = 0.3 * torch.randn(count, SAMPLES, generator=draw), torch.randint(3, (count,), generator=draw)
    mask = torch.zeros(count, SAMPLES, dtype=torch.bool)
    time, envelope = torch.arange(256.0), torch.hann_window(256)
    for row in range(count):
        first, second = torch.randint(SAMPLES - 256, (2,), generator=draw).tolist()
        x[row, second : second + 256] += envelope * torch.sin(0.45 * torch.pi * time)
        x[row, first : first + 256] += envelope * torch.sin((0.15, 0.3, 0.6)[int(label[row])] * torch.pi * time)
        mask[row, first : first + 256] = True
    return x, label, mask


def fit(
    model: nn.Module,
    batch: object,
    steps: int,
    size: int = 64,
    rate: float = 3e-3,
    noise: float = 0.0,
    clip: float = math.inf,
) -> nn.Module:
    """Train a classifier, or a regression where the labels are numbers, on batches `batch[0], batch[1]`.

    The deviation of the noise on the inputs and the largest norm of a gradient can be given.
    """
    x, labels = batch[0], batch[1]  # type: ignore[index]
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    for _ in range(steps):
        rows = torch.randint(len(labels), (size,), generator=draw)
        if isinstance(x, dict):
            out = model(**{name: one[rows] for name, one in x.items()})
        else:
            out = model(x[rows] + noise * torch.randn(x[rows].shape, generator=draw) if noise else x[rows])
        loss = F.mse_loss(out[:, 0], labels[rows]) if labels.is_floating_point() else F.cross_entropy(out, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
    return model.eval()
