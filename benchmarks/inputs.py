"""A first look at every kind of input: small trained models with a planted answer or exact Shapley values.

python -m benchmarks.inputs > benchmarks/inputs.md    (about 8 minutes on one core)

It has 16 samples of a task, and no intervals. What counts for series and tables is benchmarks/kinds.py.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from layerlens import saliency
from layerlens.errors import LayerLensError
from layerlens.faithfulness import deletion, insertion
from layerlens.results import Attribution

from .kinds_models import (
    Asked,
    Attending,
    Hard,
    Hybrid,
    Recurrent,
    Spectral,
    Steps,
    convolutional,
    events,
    fit,
    perceptron,
    questions,
    scenes,
    tones,
)

TESTED = 16
"""Samples on which the methods are compared."""

Candidates = dict[str, tuple[str, dict[str, Any]]]
Truth = Callable[[Attribution], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Task:
    """A model of one kind of input, and what is known of its samples.

    Attributes:
        name: kind of input and model.
        model: trained model.
        x: `TESTED` samples.
        target: class of each; None for the output of a regression.
        truth: map -> one number for each sample, higher is better.
        measure: name of it.
        methods: name of the row -> method and options.
        curves: whether insertion and deletion are measured.
    """

    name: str
    model: nn.Module
    x: Any
    target: list[int] | None
    truth: Truth
    measure: str
    methods: Candidates
    curves: bool = True


def _rows(*names: str) -> Candidates:
    return {name: (name, {}) for name in names}


SAMPLED: Candidates = {
    "kernel_shap, 512 samples": ("kernel_shap", {"samples": 512}),
    "shapley_sampling, 4 orders": ("shapley_sampling", {"permutations": 4}),
    "shapley_sampling, 26 orders": ("shapley_sampling", {}),
    "rise, 200 masks": ("rise", {"samples": 200}),
}
ABLATED = _rows("occlusion", "feature_ablation")
SLOPES: Candidates = {
    **_rows("relevance", "integrated_gradients", "deep_lift", "input_x_gradient", "gradient"),
    "smooth_grad, absolute": ("smooth_grad", {"magnitude": True}),
}
BLURRED: Candidates = {
    "integrated_gradients, blur": ("integrated_gradients", {"baseline": "blur"}),
    "occlusion, mean": ("occlusion", {"baseline": "mean"}),
}
PICTURES: Candidates = {
    **SLOPES, **BLURRED, **ABLATED, **SAMPLED, **_rows("grad_cam", "layer_cam"),
    "relevance, attn": ("relevance", {"rules": "attn"}),
}  # fmt: skip


def mass(mask: torch.Tensor, axis: str | None = None) -> Truth:
    """The share of the positive values that lies in a mask `(batch, *places)`; values of `axis` are added up first."""

    def share(found: Attribution) -> torch.Tensor:
        values = found.values["pixel_values"] if isinstance(found.values, dict) else found.tensor
        if values.ndim > mask.ndim:
            values = values.sum(dim=1 if axis is None else found.axes.index(axis))  # type: ignore[union-attr]
        positive = values.double().clamp_min(0).flatten(1)
        return (positive * mask.flatten(1)).sum(dim=1) / positive.sum(dim=1).clamp_min(1e-12)

    return share


def agreement(exact: torch.Tensor, read: Callable[[Attribution], torch.Tensor] | None = None) -> Truth:
    """The correlation with exact Shapley values, `(batch, features)`, in the same units."""

    def correlation(found: Attribution) -> torch.Tensor:
        values = (found.tensor if read is None else read(found)).double().flatten(1)
        pairs = (torch.stack(pair) for pair in zip(values, exact.double().flatten(1), strict=True))
        return torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs]).nan_to_num()

    return correlation


def pictures() -> Iterator[Task]:
    """Digits among fragments, for a vision transformer and one with convolutions before it; and without gradients."""
    x, label, mask = scenes(TESTED, 2)
    train = scenes(3000, 1)
    for mixture in (False, True):
        model = fit(Attending(mixture), train, 500)
        name = "images, convolutions and a transformer" if mixture else "images, a vision transformer"
        yield Task(name, model, x, label.tolist(), mass(mask), "mass on the digit", PICTURES)
    methods = {**ABLATED, **BLURRED, **SAMPLED}
    methods.pop("integrated_gradients, blur")
    yield Task("images, no gradient", Hard(model, 8), x, label.tolist(), mass(mask), "mass on the digit", methods)


def asked() -> Iterator[Task]:
    """A picture of four quadrants and a question about one."""
    model = fit(Asked(), questions(4000, 1), 400)
    x, label, mask = questions(TESTED, 2)
    quadrants = torch.arange(4).reshape(1, 1, 2, 2).repeat_interleave(8, 2).repeat_interleave(8, 3)
    features = {"pixel_values": quadrants, "input_ids": torch.arange(4, 9).reshape(1, 5)}
    methods: Candidates = {**SLOPES, **SAMPLED, **_rows("feature_ablation")}
    methods.pop("rise, 200 masks")  # one input only
    methods["relevance, attn"] = ("relevance", {"rules": "attn"})
    exact = _saliency(model, x, label.tolist(), "kernel_shap", {"features": features, "samples": 512})
    truths = ((agreement(parts(exact), parts), "correlation with exact"), (mass(mask), "mass on the quadrant"))
    for truth, measure in truths:
        yield Task(f"image and tokens, {measure}", model, x, label.tolist(), truth, measure, methods, False)


def parts(found: Attribution) -> torch.Tensor:
    """The numbers of four quadrants and five words; all values of a feature hold its number."""
    image = found.values["pixel_values"].sum(dim=1).reshape(-1, 2, 8, 2, 8).sum(dim=(2, 4))  # type: ignore[index]
    cells = found.settings.get("features")
    image = image / (3 * 256 / (int(cells) - 5)) if cells else image
    return torch.cat([image.flatten(1), found.values["input_ids"]], dim=1)  # type: ignore[index]


def series() -> Iterator[Task]:
    """An event in a series, for an LSTM and for convolutions; a tone in a waveform."""
    methods = {**SLOPES, **BLURRED, **ABLATED, **SAMPLED}
    x, label, _ = events(1500, 1)
    own, target, mask = events(TESTED, 2)
    lstm = fit(Recurrent(), (x, label), 300, rate=1e-2)
    conv = fit(convolutional(3, 2, 5, 1), (x.transpose(1, 2), label), 200)
    steps = fit(Steps(), (x, label), 200)
    for name, model, given, axis in (
        ("series, LSTM", lstm, own, "feature"),
        ("series, a transformer", steps, own, "feature"),
        ("series, convolutions", conv, own.transpose(1, 2).contiguous(), "channel"),
    ):
        yield Task(name, model, given, target.tolist(), mass(mask, axis), "mass on the event", methods)
    x, label, _ = tones(1500, 1)
    own, target, mask = tones(TESTED, 2)
    waves = fit(convolutional(1, 3, 31, 4), (x[:, None], label), 200)
    spectra = fit(Spectral(), (x, label), 200, rate=1e-2)
    curves = False
    yield Task(
        "audio, convolutions", waves, own[:, None], target.tolist(), mass(mask, "channel"), "mass on the tone",
        methods, curves,
    )  # fmt: skip
    by_cell: Candidates = {
        name: (method, {"features": 64, **options} if method not in ("occlusion", "rise") else options)
        for name, (method, options) in {**ABLATED, **SAMPLED}.items()
        if method not in ("occlusion", "rise")
    }
    yield Task(
        "audio (batch, samples), a spectrogram", spectra, own, target.tolist(), mass(mask), "mass on the tone",
        {**SLOPES, **{f"{name}, 64 cells": row for name, row in by_cell.items()}}, curves,
    )  # fmt: skip


def hybrids() -> Iterator[Task]:
    """The same event and tone, for convolutions with a recurrent layer behind them."""
    methods = {**SLOPES, **BLURRED, **ABLATED, **SAMPLED}
    x, label, _ = events(1500, 1)
    wave, tone, _ = tones(1500, 1)
    own, target, mask = events(TESTED, 2)
    heard, pitch, place = tones(TESTED, 2)
    for name, build, train, given, classes, truth in (
        ("series, convolutions and an LSTM", lambda: Hybrid(3, 2, 5, 1, nn.LSTM), (x.transpose(1, 2), label),
         own.transpose(1, 2).contiguous(), target, mask),
        ("series, convolutions and a GRU", lambda: Hybrid(3, 2, 5, 1, nn.GRU), (x.transpose(1, 2), label),
         own.transpose(1, 2).contiguous(), target, mask),
        ("audio, convolutions and a GRU", lambda: Hybrid(1, 3, 31, 16, nn.GRU), (wave[:, None], tone),
         heard[:, None], pitch, place),
    ):  # fmt: skip
        torch.manual_seed(0)
        model = fit(build(), train, 300, rate=1e-2)
        measure = "mass on the tone" if given.shape[1] == 1 else "mass on the event"
        yield Task(name, model, given, classes.tolist(), mass(truth, "feature"), measure, methods)


def transformers(seed: int) -> Iterator[Task]:
    """Networks with attention for 48 samples each, trained from a seed, and both rulebooks of relevance for them."""
    books: Candidates = {"cp": ("relevance", {"rules": "cp"}), "attn": ("relevance", {"rules": "attn"})}
    x, label, mask = scenes(48, 2)
    own, target, event = events(48, 2)
    for name in ("images, a vision transformer", "images, convolutions and a transformer", "series, a transformer"):
        torch.manual_seed(seed)
        if name.startswith("series"):
            model = fit(Steps(), events(1500, 1), 200)
            yield Task(name, model, own, target.tolist(), mass(event, "feature"), "mass on the event", books)
        else:
            model = fit(Attending("convolutions" in name), scenes(3000, 1), 500)
            yield Task(name, model, x, label.tolist(), mass(mask), "mass on the digit", books)


def tables() -> Iterator[Task]:
    """Regression and classification by ten columns, against exact Shapley values; a layer; without gradients."""
    from sklearn.datasets import load_breast_cancer, load_diabetes

    methods: Candidates = {**SLOPES, **ABLATED, **SAMPLED}
    methods.pop("occlusion")  # is feature_ablation of a table
    for name, bunch, outputs in (("diabetes", load_diabetes(), 1), ("breast cancer", load_breast_cancer(), 2)):
        x = torch.from_numpy(bunch.data[:, :10]).float()
        x = (x - x.mean(dim=0)) / x.std(dim=0)
        y = torch.from_numpy(bunch.target)
        labels = ((y - y.mean()) / y.std()).float() if outputs == 1 else y
        model = fit(perceptron(10, outputs), (x, labels), 300)
        own, target = x[:TESTED], None if outputs == 1 else labels[:TESTED].tolist()
        places: list[tuple[str, nn.Module, dict[str, Any], Candidates]] = [(f"a table, {name}", model, {}, methods)]
        layer = {
            row: (method, {**options, "where": "2"})
            for row, (method, options) in methods.items()
            if method not in ("relevance", "rise")
        }
        places.append((f"a layer of 12 units, {name}", model, {"where": "2"}, layer))
        steps = {row: one for row, one in {**ABLATED, **SAMPLED}.items() if row in methods}
        places.append((f"a table, no gradient, {name}", Hard(model, 2), {}, steps))
        for kind, net, where, candidates in places:
            exact = _saliency(net, own, target, "kernel_shap", {"samples": 4096, **where}).tensor
            yield Task(kind, net, own, target, agreement(exact), "correlation with exact", candidates, False)


def _saliency(model: nn.Module, x: Any, target: Any, method: str, options: dict[str, Any]) -> Attribution:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return saliency(model, x, target=target, method=method, **options)


def areas(task: Task, found: Attribution) -> torch.Tensor:
    """Insertion less deletion of each sample, `(batch,)`, the mean of two fills."""
    own = [
        sign * curve(task.model, task.x, found, target=task.target, fill=fill, steps=12).area.double()
        for curve, sign in ((insertion, 1), (deletion, -1))
        for fill in ("mean", "blur")
    ]
    return torch.stack(own).sum(dim=0) / 2


def compared(task: Task) -> list[str]:
    """The means of two methods by both measures, and their paired difference with its standard error."""
    found = [_saliency(task.model, task.x, task.target, *one) for one in task.methods.values()]
    cells = []
    for first, second in (map(task.truth, found), [areas(task, one) for one in found]):
        change = second.double() - first.double()
        error = float(change.std() / len(change) ** 0.5)
        cells += [f"{first.mean():.3f}", f"{second.mean():.3f}", f"{change.mean():+.3f} ± {error:.3f}"]
    return cells


def measured(task: Task) -> list[tuple[str, float, float | None, float, str]]:
    """The rows of a task: method, truth, insertion less deletion, seconds a sample, cost; best first."""
    rows = []
    for name, (method, options) in task.methods.items():
        start = time.process_time()
        try:
            found = _saliency(task.model, task.x, task.target, method, options)
        except LayerLensError:  # a method that does not take this input
            continue
        seconds = (time.process_time() - start) / TESTED
        area = float(areas(task, found).mean()) if task.curves else None
        rows.append((name, float(task.truth(found).mean()), area, seconds, found.cost))
    return sorted(rows, key=lambda row: -row[1])


def main() -> None:
    """Print the report."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("# Methods by kind of input, a first look\n")
    print(f"Small models trained in seconds, {TESTED} samples each. Made by `python -m benchmarks.inputs`; what")
    print('`method="auto"` takes of it is in docs/saliency.md. Mass: the share of the positive values on the planted')
    print("answer. Correlation: with exact Shapley values from the zero baseline; of an image and tokens, those of its")
    print("four quadrants and five words. Insertion less deletion: of the class's probability, with two fills.\n")
    for part in (tables, series, asked, pictures, hybrids):
        for task in part():
            print(f"## {task.name}\n\n| method | {task.measure} | insertion - deletion | seconds | cost |")
            print("| --- | ---: | ---: | ---: | --- |")
            for name, truth, area, seconds, cost in measured(task):
                print(f"| {name} | {truth:.3f} | {'' if area is None else f'{area:.3f}'} | {seconds:.3f} | {cost} |")
            print(flush=True)
    print("## rules for attention\n")
    print("Relevance by `cp`, the default, and by `attn`: 48 samples, three trainings, paired differences.\n")
    print("| network | seed | mass, cp | attn | difference | insertion - deletion, cp | attn | difference |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for seed in range(3):
        for task in transformers(seed):
            print(f"| {task.name} | {seed} | {' | '.join(compared(task))} |", flush=True)


if __name__ == "__main__":
    main()
