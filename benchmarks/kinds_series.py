"""Tasks on series: planted patterns whose places are known, and real series of the package aeon."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .kinds_methods import SERIES
from .kinds_models import (
    Gated,
    Hybrid,
    Placed,
    Residual,
    averaged,
    convolutional,
    events,
    fit,
    flattened,
)
from .kinds_task import Curves, Measure, Subject, Task, agreement, by_segment, exact_shapley, mass, of_class, ordered

SAMPLES, SEGMENTS, OTHERS = 60, 8, 3
"""Samples of a task; parts of a series whose exact Shapley values are known; other series that replace a part."""

FEEDFORWARD = "series, convolutions or attention"
RECURRENT = "series, recurrent layers"

Data = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Series `(n, time, channel)`, their classes, and the planted places `(n, time)`."""


def chirp(size: int) -> torch.Tensor:
    """A wave that gets faster, `(size,)`."""
    time = torch.linspace(0, 1, size)
    return torch.sin(2 * torch.pi * (time + 1.5 * time**2)) * 1.5


def planted_where(count: int, seed: int, length: int, channels: int, parts: int = 3) -> Data:
    """The class is the part of the series in which channel 0 has a chirp; square waves are anywhere."""
    draw = torch.Generator().manual_seed(seed)
    size = max(8, length // 12)
    x = 0.3 * torch.randn(count, length, channels, generator=draw)
    label = torch.randint(parts, (count,), generator=draw)
    mask = torch.zeros(count, length, dtype=torch.bool)
    room = length // parts - size
    square = torch.sign(torch.sin(torch.linspace(0.1, 4 * torch.pi, size)))
    for row in range(count):
        for channel in range(channels):
            other = int(torch.randint(length - size, (1,), generator=draw))
            x[row, other : other + size, channel] += square
        start = int(label[row]) * (length // parts) + int(torch.randint(room, (1,), generator=draw))
        x[row, start : start + size, 0] += chirp(size)
        mask[row, start : start + size] = True
    return x, label, mask


def planted_pairs(count: int, seed: int, length: int, channels: int) -> Data:
    """The class is whether the humps of channels 0 and 1 have the same sign; other channels have humps too."""
    draw = torch.Generator().manual_seed(seed)
    size = max(6, length // 10)
    x = 0.3 * torch.randn(count, length, channels, generator=draw)
    signs = 1 - 2 * torch.randint(2, (count, channels), generator=draw)
    mask = torch.zeros(count, length, dtype=torch.bool)
    hump = 2 * torch.hann_window(size)
    for row in range(count):
        for channel in range(channels):
            start = int(torch.randint(length - size, (1,), generator=draw))
            x[row, start : start + size, channel] += signs[row, channel] * hump
            if channel < 2:
                mask[row, start : start + size] = True
    return x, (signs[:, 0] == signs[:, 1]).long(), mask


@functools.lru_cache(maxsize=2)
def recorded(name: str) -> tuple[Data, Data]:
    """Series of a data set in the package aeon to train on, and at least 60 others to test on, mixed by a fixed seed.

    The places that count are not known: nothing is planted.

    Raises:
        PackageNotFoundError: when aeon is not installed.
        FileNotFoundError: when it does not have the data set.
    """
    rows = []
    for part in ("TRAIN", "TEST"):
        files = [one for one in importlib.metadata.files("aeon") or () if one.name == f"{name}_{part}.ts"]
        if not files:
            raise FileNotFoundError(f"aeon has no {name}_{part}.ts; version 1.6.0 has it.")
        with open(files[0].locate()) as file:
            rows += [line.strip().split(":") for line in file if line.strip() and line[0] not in "#@"]
    classes = sorted({row[-1] for row in rows})
    x = torch.tensor([[[float(one) for one in channel.split(",")] for channel in row[:-1]] for row in rows])
    labels = torch.tensor([classes.index(row[-1]) for row in rows])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, labels, mask = x.transpose(1, 2)[order], labels[order], torch.zeros(len(x), x.shape[2], dtype=torch.bool)
    cut = len(x) - max(SAMPLES, len(x) // 3)
    x = (x - x[:cut].mean(dim=(0, 1))) / x[:cut].std(dim=(0, 1))
    return (x[:cut], labels[:cut], mask[:cut]), (x[cut:], labels[cut:], mask[cut:])


def _subject(
    data: Callable[[], tuple[Data, Data]],
    build: Callable[[], nn.Module],
    steps: int,
    rate: float,
    noise: float,
    layout: str,
    alike: bool,
) -> Subject:
    """Train a network, and measure maps of samples of the test part that are mixed by a fixed seed."""
    (x, label, _), (own, truth, mask) = data()
    unit = {"time, channel": 2, "channel, time": 1, "time": None}[layout]

    def laid_out(series: torch.Tensor) -> torch.Tensor:
        if unit is None:
            return series[:, :, 0].contiguous()
        return (series if unit == 2 else series.transpose(1, 2)).contiguous()

    torch.manual_seed(0)
    model = fit(build(), (laid_out(x), label), steps, rate=rate, noise=noise, clip=1.0)
    with torch.inference_mode():
        quality = float((model(laid_out(own)).argmax(dim=1) == truth).float().mean())
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    tested, target, mask = laid_out(own[order]), truth[order].tolist(), mask[order]
    labels = (torch.arange(x.shape[1]) * SEGMENTS // x.shape[1]).long()
    shape = {2: (1, -1, 1), 1: (1, 1, -1), None: (1, -1)}[unit]
    others = laid_out(x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:OTHERS]])
    score = of_class(model, target)
    read = by_segment(labels, unit)
    measures: dict[str, Measure] = {
        "zero": agreement(exact_shapley(score, tested, torch.zeros_like(others[:1]), labels.reshape(shape)), read),
        "rows": agreement(exact_shapley(score, tested, others, labels.reshape(shape)), read),
    }
    time = 1 if unit is None else 3 - unit
    fills = tested.mean(dim=time, keepdim=True), tested.roll(7, dims=0)
    measures["curves"] = Curves(model, tested, target, fills, unit)
    if bool(mask.any()):
        measures |= {"mass": mass(mask, unit), "AUC": ordered(mask, unit)}
    groups = torch.tensor(target) if alike else None
    return Subject(model, tested, target, measures, quality, groups, others)


def series() -> Iterator[Task]:
    """The tasks."""

    def made(make: Callable[..., Data], *size: int) -> Callable[[], tuple[Data, Data]]:
        return lambda: (make(2000, 1, *size), make(200, 2, *size))

    def real(name: str) -> Callable[[], tuple[Data, Data]]:
        return lambda: recorded(name)

    def task(
        name: str, kind: str, data: Any, build: Callable[[], nn.Module], steps: int = 200, rate: float = 3e-3,
        noise: float = 0.0, layout: str = "", alike: bool = False,
    ) -> Task:  # fmt: skip
        layout = layout or ("time, channel" if kind == RECURRENT else "channel, time")
        build_all = functools.partial(_subject, data, build, steps, rate, noise, layout, alike)
        return Task(name, kind, build_all, SERIES, real=not name.startswith("planted"))

    event = made(events)
    yield from (
        task("planted place, 500 x 1, convolutions", FEEDFORWARD, made(planted_where, 500, 1),
             lambda: flattened(1, 3, 500)),
        task("GunPoint, 150 x 1, residual convolutions", FEEDFORWARD, real("GunPoint"), lambda: Residual(1, 2), 80,
             noise=0.1),
        task("planted pair, 128 x 6, convolutions", FEEDFORWARD, made(planted_pairs, 128, 6),
             lambda: convolutional(6, 2, 13, 2, 16), 300, 1e-2),
    )  # fmt: skip
    recorded_series = (
        ("ItalyPowerDemand", 24, 1, 2, 0.5), ("GunPoint", 150, 1, 2, 0.1), ("BasicMotions", 100, 6, 4, 0.1),
        ("JapaneseVowels_eq", 25, 12, 9, 0.2),
    )  # fmt: skip
    for name, length, channels, classes, noise in recorded_series:
        yield task(f"{name.removesuffix('_eq')}, {length} x {channels}, convolutions", FEEDFORWARD, real(name),
                   functools.partial(averaged, channels, classes), 200, 1e-2, noise, alike=classes > 4)  # fmt: skip
    yield from (
        task("planted order, 96 x 3, convolutions and a transformer", FEEDFORWARD, event, lambda: Placed(3, 2, 96, 4),
             200),
        task("ItalyPowerDemand, 24 x 1, convolutions and a transformer", FEEDFORWARD, real("ItalyPowerDemand"),
             lambda: Placed(1, 2, 24, 1, last=True), 100, noise=0.3, layout="time, channel"),
    )  # fmt: skip
    yield from (
        task("planted order, 96 x 3, an LSTM", RECURRENT, event, lambda: Gated(3, 2, nn.LSTM, "max"), 300, 1e-2),
        task("planted place, 60 x 2, a GRU", RECURRENT, made(planted_where, 60, 2), lambda: Gated(2, 3, nn.GRU),
             400, 1e-2),
        task("ItalyPowerDemand, 24 x 1, an LSTM", RECURRENT, real("ItalyPowerDemand"),
             lambda: Gated(1, 2, nn.LSTM, "mean"), 200, 1e-2, noise=0.5),
        task("JapaneseVowels, 25 x 12, a GRU", RECURRENT, real("JapaneseVowels_eq"), lambda: Gated(12, 9, nn.GRU),
             200, 1e-2, noise=0.2, alike=True),
        task("planted order, 96 x 3, convolutions and an LSTM", RECURRENT, event,
             lambda: Hybrid(3, 2, 5, 1, nn.LSTM), 300, 1e-2, layout="channel, time"),
        task("GunPoint, 150 x 1, convolutions and a GRU", RECURRENT, real("GunPoint"),
             lambda: Hybrid(1, 2, 9, 3, nn.GRU), 200, 1e-2, noise=0.1, layout="channel, time"),
    )  # fmt: skip
