"""Tables of what benchmarks.tokens measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr

from .token_methods import FOR_ALL_TARGETS, METHODS
from .token_truth import FILLS, Case, drops

HELD_OUT = ("space", "eos", "masked", "deleted")
"""Fills that no method uses; the truth is the mean of what the score loses with them, each over its own mean size."""

Numbers = Sequence[float] | np.ndarray[Any, Any]
Row = dict[str, list[float]]


def rank(left: torch.Tensor, right: torch.Tensor, how: Any = spearmanr) -> float:
    """Rank correlation of two maps; 0 where one of them is constant."""
    if len(left) < 3 or bool((left == left[0]).all()) or bool((right == right[0]).all()):
        return 0.0
    return float(how(left.numpy(), right.numpy()).statistic)


def together(found: dict[str, torch.Tensor], fills: Sequence[str]) -> torch.Tensor:
    """The mean over fills of the drops, each divided by its mean size."""
    return torch.stack([found[fill] / found[fill].abs().mean().clamp_min(1e-9) for fill in fills]).mean(dim=0)


def interval(values: Numbers) -> str:
    """Mean and the 95 % interval of it, by 2,000 draws of the prompts with replacement."""
    numbers = np.asarray(values, dtype=float)
    picks = np.random.default_rng(0).integers(len(numbers), size=(2000, len(numbers)))
    low, high = np.percentile(numbers[picks].mean(axis=1), [2.5, 97.5])
    return f"{numbers.mean():.2f} [{low:.2f}, {high:.2f}]"


def compare(values: torch.Tensor, found: dict[str, torch.Tensor], own: str = "", inner: slice = slice(None)) -> Row:
    """Spearman with the truth, all tokens and without the first; Kendall; whether the strongest token is the same."""
    true = together(found, [fill for fill in HELD_OUT if fill != own])[inner]
    values = values[inner]
    return {
        "spearman": [rank(values, true)],
        "no first": [rank(values[1:], true[1:])],
        "kendall": [rank(values, true, kendalltau)],
        "top": [float(values.argmax() == true.argmax())],
    }


def spans(values: torch.Tensor, wide: dict[str, torch.Tensor] | None, target: str) -> Row:
    """Spearman of sums over three tokens in a row with what the score loses without the three."""
    if wide is None:
        return {}
    true = together(drops(wide, target), HELD_OUT)
    return {"spans": [rank(values.unfold(0, 3, 1).sum(dim=1), true)]}


def _add(rows: dict[str, Row], name: str, found: Row) -> None:
    for column, values in found.items():
        rows.setdefault(name, {}).setdefault(column, []).extend(values)


def gather(folder: Path, target: str) -> tuple[dict[str, Row], list[Case]]:
    """By method, every number of every prompt that is done."""
    rows: dict[str, Row] = {}
    cases = []
    for file in sorted(folder.glob("curves*.pt"), key=lambda path: int(path.stem[6:])):
        number = file.stem[6:]
        case, truth, wide = torch.load(folder / f"truth{number}.pt", weights_only=False)
        maps, lines = torch.load(folder / f"maps{number}.pt"), torch.load(file)
        found = drops(truth, target)
        cases.append(case)
        for name in METHODS if target == "contrast" else FOR_ALL_TARGETS:
            values = maps[target][name]
            _add(rows, name, compare(values, found) | spans(values, wide, target))
            if target == "contrast":
                out, kept = lines[name].tolist()
                _add(rows, name, {"out": [out], "kept": [kept], "seconds": [float(maps["seconds"][name])]})
        for fill in FILLS:
            _add(rows, f"ceiling: {fill}", compare(found[fill], found, fill) | spans(found[fill], wide, target))
    return rows, cases


def agreement(folder: Path, target: str) -> np.ndarray[Any, Any]:
    """Mean Spearman of the drops by one fill with those by another, over all prompts with a truth, `(fill, fill)`."""
    total = []
    for file in folder.glob("truth*.pt"):
        _, truth, _ = torch.load(file, weights_only=False)
        found = drops(truth, target)
        total.append([[rank(found[one], found[other]) for other in FILLS] for one in FILLS])
    return np.mean(total, axis=0)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a table in markdown."""
    print(f"| {' | '.join(head)} |\n| --- |{' ---: |' * (len(head) - 1)}")
    for line in lines:
        print(f"| {' | '.join(line)} |")
    print()


def mean(values: Sequence[float] | None) -> str:
    """A mean with two digits, or a dash."""
    return f"{np.mean(values):.2f}" if values else "-"


def report(folder: Path) -> None:
    """Print everything as markdown."""
    rows, cases = gather(folder, "contrast")
    count, tokens = len(cases), sum(len(case.ids) for case in cases)
    print(
        f"""# Maps of tokens against leaving tokens out

SmolLM2-135M-Instruct, {count} prompts ({tokens} tokens) that it completes rightly and that took no part in choosing the
method. Made by `python -m benchmarks.tokens`; what it means is in docs/language-models.md.

The truth of a token is what the score loses without it: the mean over four ways of leaving it out (a space in its
place, the end-of-text token, masked in every attention, deleted), each over its mean size. Brackets: 95 % intervals
over prompts. "Ceiling" rows are leave-one-out by one fill against the others.

## The answer's logit less that of a foil

Spearman with the truth; the same without the first token; Kendall; how often the strongest token is that of the truth;
Spearman of sums over three tokens with the truth of leaving out three; comprehensiveness (the part of the score lost
when the strongest 20, 40, 60, 80 % are deleted, higher is better) and sufficiency (lost when only they are kept, lower
is better); seconds per prompt on one core.
"""
    )
    head = ["method", "Spearman", "no first", "Kendall", "strongest", "of three", "compr.", "suff.", "seconds"]
    columns = ("no first", "kendall", "top", "spans", "out", "kept", "seconds")
    table(head, [[name, interval(row["spearman"]), *(mean(row.get(c)) for c in columns)] for name, row in rows.items()])
    print("## Paired differences of Spearman to leave_one_out and to centred relevance (attn)\n")
    best = [np.array(rows[name]["spearman"]) for name in ("leave_one_out", "centred relevance, attn")]
    table(
        ["method", "less leave_one_out", "less centred relevance"],
        [[name, *(interval(np.array(row["spearman"]) - other) for other in best)] for name, row in rows.items()],
    )
    print("## By target: Spearman, and how often the strongest token is right\n")
    others = {target: gather(folder, target)[0] for target in ("log p", "logit")}
    table(
        ["method", "contrast", "log p", "logit"],
        [
            [name, *(f"{mean(r[name]['spearman'])} / {mean(r[name]['top'])}" for r in (rows, *others.values()))]
            for name in rows
            if all(name in r for r in others.values())
        ],
    )
    print("## Do two fills agree? Spearman of leave-one-out by one with leave-one-out by another, all prompts\n")
    for target in ("contrast", "log p", "logit"):
        pairs = agreement(folder, target)
        apart = pairs[~np.eye(len(FILLS), dtype=bool)]
        print(f"{target}: {apart.mean():.2f} on average, {apart.min():.2f} to {apart.max():.2f}\n")
    print("## By family of prompts, contrast: Spearman\n")
    families = list(dict.fromkeys(case.prompt.family for case in cases))
    shown = [name for name in rows if not name.startswith(("ceiling", "control: random"))]
    table(
        ["family", "prompts", *shown],
        [
            [family, str(len(where)), *(mean([rows[name]["spearman"][i] for i in where]) for name in shown)]
            for family in families
            if (where := [i for i, case in enumerate(cases) if case.prompt.family == family])
        ],
    )
    encoder(folder)


def encoder(folder: Path) -> None:
    """The table of the sentence encoder."""
    if not (folder / "encoder.pt").exists():
        return
    rows: dict[str, Row] = {}
    found = torch.load(folder / "encoder.pt", weights_only=False)
    for _, truth, maps in found:
        true = drops(truth, "contrast")
        for name in METHODS:
            _add(rows, name, compare(maps[name], true, inner=slice(1, -1)))
        for fill in FILLS:
            _add(rows, f"ceiling: {fill}", compare(true[fill], true, fill, slice(1, -1)))
    print(
        f"""## Another model: all-MiniLM-L6-v2, the similarity of a sentence to another one, {len(found)} sentences

The fills "space" and "end of text" are its mask token and its separator; [CLS] and [SEP] are left aside.
"""
    )
    columns = ("kendall", "top")
    table(
        ["method", "Spearman", "Kendall", "strongest"],
        [[name, interval(row["spearman"]), *(mean(row[c]) for c in columns)] for name, row in rows.items()],
    )
