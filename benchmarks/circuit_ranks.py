"""Do contributions rank parts as taking each out does? Sample by sample, next to gradient times activation."""

from __future__ import annotations

import numpy as np
import torch

from .circuit_ways import Subject, contributions, one_by_one


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the rank of each value of a column."""
    return values.argsort(dim=0).argsort(dim=0).double()


def correlation(one: torch.Tensor, other: torch.Tensor) -> np.ndarray:
    """Return Spearman's rank correlation of each sample, of `(parts, samples)` each."""
    a, b = (ranks(values) - (len(values) - 1) / 2 for values in (one, other))
    return ((a * b).sum(dim=0) / (a.square().sum(dim=0) * b.square().sum(dim=0)).sqrt()).numpy()


def measure_ranks(subject: Subject, rules: str, step: int) -> dict[str, np.ndarray]:
    """Return way/ablation -> rank correlation of each sample.

    Args:
        subject: the model and its inputs.
        rules: rules of the contributions.
        step: 2 for every second part, and so on.
    """
    table = contributions(subject, rules)
    places = [table.items.index(name) for name in subject.names]
    run = subject.run(subject.clean)
    slopes = run.gradients()
    corrupted = {name: value.detach() for name, value in subject.run(subject.corrupted).values.items()}
    assert table.difference is not None
    values = {name: value.detach() for name, value in run.values.items()}
    change = {name: value - corrupted[name] for name, value in values.items()}
    ways = {
        "contributions, direct": table.direct[places],
        "contributions, total": table.total[places],
        "contributions, difference": table.difference[places],
        "gradient x activation": subject.per_sample({name: slopes[name] * values[name] for name in slopes}),
        "attribution patching": subject.per_sample({name: slopes[name] * change[name] for name in slopes}),
    }
    found = {}
    for ablation in ("zero", "resample"):
        zeros = {name: torch.zeros_like(value[:1]) for name, value in corrupted.items()}
        lost = one_by_one(subject, corrupted if ablation == "resample" else zeros, step).double()
        for way, row in ways.items():
            found[f"{way}/{ablation}"] = correlation(row[::step].double(), lost)
            print(f"    {way}, {ablation}: {found[f'{way}/{ablation}'].mean():.3f}", flush=True)
    return found
