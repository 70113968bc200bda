"""Kinds of models that neither tests/cases.py nor the tiny transformers have: name -> model and input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.cases import normal, perturb, tokens

KINDS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {}


def kind(make: Callable[[], tuple[nn.Module, Any]]) -> Callable[[], tuple[nn.Module, Any]]:
    """Make a row of a function that builds a model and an input: seeded, perturbed, in eval mode."""

    def build() -> tuple[nn.Module, Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, x = make()
            return perturb(model).eval(), x

    KINDS[make.__name__] = build
    return build


class UNet(nn.Module):
    """Two scales, skips by concatenation, and a time embedding that is added to the units."""

    def __init__(self, time: bool) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.time = nn.Sequential(nn.Linear(4, 12), nn.SiLU(), nn.Linear(12, 12)) if time else None
        self.middle, self.norm = nn.Conv2d(12, 12, 3, padding=1), nn.GroupNorm(3, 12)
        self.up, self.join = nn.ConvTranspose2d(12, 8, 2, stride=2), nn.Conv2d(16, 8, 3, padding=1)
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor | None = None) -> torch.Tensor:
        one = self.down1(x).relu()
        two = self.norm(self.down2(one)).relu()
        if self.time is not None and t is not None:
            angles = t[:, None] * torch.tensor([1.0, 0.1])
            two = two + self.time(torch.cat([angles.sin(), angles.cos()], -1))[:, :, None, None]
        return self.out(self.join(torch.cat([self.up(self.middle(two)), one], 1)))


@kind
def u_net():
    return UNet(time=False), normal(2, 1, 16, 24)


@kind
def diffusion():
    return UNet(time=True), {"x": normal(2, 1, 16, 24), "t": torch.tensor([3.0, 8.0])}


class OwnRecurrence(nn.Module):
    """A cell called step by step, its states stacked, read from behind as well."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.back, self.head = nn.GRUCell(5, 7), nn.LSTMCell(5, 6), nn.Linear(13, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, cell = x.new_zeros(len(x), 7), (x.new_zeros(len(x), 6), x.new_zeros(len(x), 6))
        forwards: list[torch.Tensor] = []
        backwards: list[torch.Tensor] = []
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
            forwards.append(state)
        for step in reversed(range(x.shape[1])):
            cell = self.back(x[:, step], cell)
            backwards.insert(0, cell[0])
        return self.head(torch.cat([torch.stack(forwards, 1), torch.stack(backwards, 1)], -1))


@kind
def own_recurrence():
    return OwnRecurrence(), normal(2, 6, 5)


class Written(nn.Module):
    """States written into a tensor of zeros, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.RNNCell(5, 7), nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, states = x.new_zeros(len(x), 7), x.new_zeros(len(x), x.shape[1], 7)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
            states[:, step] = state
        return self.head(states)


@kind
def written_recurrence():
    return Written(), normal(2, 6, 5)


class CnnLstm(nn.Module):
    """A spectrogram read by convolutions, then by an LSTM over its columns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 6, 3, padding=1), nn.MaxPool2d((2, 1))
        self.rnn, self.head = nn.LSTM(6 * 8, 9, bidirectional=True, batch_first=True), nn.Linear(18, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.pool(self.conv(x).relu())
        return self.head(self.rnn(maps.permute(0, 3, 1, 2).flatten(2))[0])


@kind
def cnn_lstm():
    return CnnLstm(), normal(2, 1, 16, 20)


class Causal(nn.Module):
    """Dilated causal convolutions with residuals, as in temporal convolutional networks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 8, 1)
        self.convs = nn.ModuleList(nn.Conv1d(8, 8, 3, padding=2 * d, dilation=d) for d in (1, 2, 4))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for conv in self.convs:
            x = x + conv(x)[..., : x.shape[-1]].relu()
        return self.head(x.transpose(1, 2))


@kind
def causal_convolutions():
    return Causal(), normal(2, 3, 24)


class Padded(nn.Module):
    """torch's own encoder with a padding mask, which runs on nested tensors in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.embedding, self.encoder = nn.Embedding(20, 8, padding_idx=0), nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embedding(ids), src_key_padding_mask=ids == 0))


@kind
def padded_encoder():
    ids = tokens(2, 6, 20)
    ids[1, 4:] = 0
    return Padded(), ids


class Packed(nn.Module):
    """A packed sequence through an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(5, 7, batch_first=True), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(states)


@kind
def packed_sequence():
    return Packed(), {"x": normal(2, 6, 5), "lengths": torch.tensor([4, 6])}


class Shuffled(nn.Module):
    """Super-resolution by pixel shuffle, and the same by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shuffle = nn.Conv2d(3, 16, 3, padding=1), nn.PixelShuffle(2)
        self.more, self.out = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.more(self.shuffle(self.conv(x)))
        b, c, h, w = x.shape
        x = x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)
        return self.out(x)


@kind
def pixel_shuffle():
    return Shuffled(), normal(2, 3, 8, 12)


class Spectrogram(nn.Module):
    """A waveform, its spectrogram, and convolutions over time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(17, 8, 3, padding=1), nn.Linear(8, 3)
        self.register_buffer("window", torch.hann_window(32))

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        frames = torch.stft(wave, 32, 16, window=self.get_buffer("window"), return_complex=True).abs()
        return self.head(self.conv(frames).transpose(1, 2))


@kind
def spectrogram():
    return Spectrogram(), normal(2, 256)


class Graph(nn.Module):
    """Message passing over edges of one graph: nodes are the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        hidden = self.first(nodes)
        sent = torch.zeros_like(hidden).index_add(0, edges[1], hidden[edges[0]])
        return self.second(hidden + sent.relu())


@kind
def graph():
    return Graph(), {"nodes": normal(5, 4), "edges": torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])}


class Multimodal(nn.Module):
    """Picture tokens scattered into a sequence of text, and a sequence of both."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.patches = nn.Embedding(20, 8), nn.Conv2d(3, 8, 4, 4)
        self.inside, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        text, seen = self.embedding(ids), self.patches(pixels).flatten(2).transpose(1, 2)
        mixed = text.masked_scatter((ids == 0)[..., None].expand_as(text), seen)
        return self.head(torch.cat([self.inside(mixed), seen], 1))


@kind
def multimodal():
    ids = tokens(2, 9, 20)
    ids[:, 2:6] = 0
    return Multimodal(), {"ids": ids, "pixels": normal(2, 3, 8, 8)}


class Merged(nn.Module):
    """Patch merging, as in Swin, and complex rotary positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.merge, self.head = nn.Conv2d(3, 8, 2, 2), nn.Linear(32, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        x = self.merge(x).flatten(1, 2)
        turned = torch.view_as_complex(x.unflatten(-1, (8, 2)))
        turned = turned * torch.polar(torch.ones(x.shape[1], 8), torch.arange(x.shape[1])[:, None] * torch.ones(8))
        return self.head(torch.view_as_real(turned).flatten(-2))


@kind
def patch_merging():
    return Merged(), normal(2, 3, 16, 24)


class Mapped(nn.Module):
    """A layer mapped over the time steps by torch.func.vmap, under checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.utils.checkpoint.checkpoint(self.first, x, use_reentrant=False)
        return self.head(torch.func.vmap(lambda row: row.tanh() * row.mean(), in_dims=1, out_dims=1)(self.second(x)))


@kind
def mapped():
    return Mapped(), normal(2, 6, 5)


@kind
def quantized():
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    return torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, torch.qint8), normal(2, 6, 5)
