"""The stored numbers of the benchmark by kind of input, and the page made of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

STORED = Path(__file__).with_name("kinds.npz")
MEASURES = ("mass", "AUC", "zero", "rows", "curves")
ASPECTS = {"planted": ("mass",), "exact": ("zero", "rows"), "curves": ("curves",)}
"""What is asked of a map, and the measures whose mean answers it; the worth of a map is the mean of the answers."""

MEANINGS = {
    "mass": "the share of the positive values on the planted places",
    "AUC": "how often a planted place has a larger value than another one",
    "zero": "the correlation with exact Shapley values against zeros",
    "rows": "the same against other samples of the data",
    "curves": "insertion less deletion, the mean of two fills or three",
}
DEFAULT = "auto"
DEFAULTS = {"": DEFAULT, "rows": "auto, rows", "mean row": "auto, mean row"}
"""The default by what the methods that are compared with it are given of the background."""

DRAWS = 4000
TUNED = 3
"""Every third task of a kind, by name, is one on which a default may be chosen."""

MORE = 1.25
"""A method has the price of the default if it takes no more passes than it, times this."""

Span = tuple[float, float, float]


@dataclasses.dataclass
class Stored:
    """What was measured.

    Attributes:
        tasks: by name: kind, whether the data are real, quality of the model, and group of each sample.
        rows: by task and method: every measure `(samples,)`, passes, seconds and method taken; or why there are none.
        scores: by task: the score of each sample, by which a network is recognized.
    """

    tasks: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    rows: dict[tuple[str, str], dict[str, Any]] = dataclasses.field(default_factory=dict)
    scores: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Stored:
        """Read a file; nothing where there is none."""
        found = cls()
        if not path.exists():
            return found
        with np.load(path) as file:
            found.tasks, heads = json.loads(str(file["tasks"])), json.loads(str(file["rows"]))
            values, scores = file["values"].astype(np.float64), file["scores"]
        for number, (name, task) in enumerate(found.tasks.items()):
            found.scores[name] = scores[number, : len(task["groups"])]
        for (name, method, head), own in zip(heads, values, strict=True):
            size = len(found.tasks[name]["groups"])
            known = {measure: line[:size] for measure, line in zip(MEASURES, own, strict=True)}
            found.rows[name, method] = head | {key: line for key, line in known.items() if np.isfinite(line).all()}
        return found

    def save(self, file: IO[bytes]) -> None:
        """Write it, values as float16."""
        size = max((len(task["groups"]) for task in self.tasks.values()), default=0)
        values = np.full((len(self.rows), len(MEASURES), size), np.nan, dtype=np.float16)
        scores = np.full((len(self.tasks), size), np.nan, dtype=np.float32)
        heads = []
        for row, ((name, method), found) in enumerate(self.rows.items()):
            heads.append((name, method, {key: one for key, one in found.items() if key not in MEASURES}))
            for column, measure in enumerate(MEASURES):
                if measure in found:
                    values[row, column, : len(found[measure])] = found[measure]
        for row, name in enumerate(self.tasks):
            scores[row, : len(self.scores[name])] = self.scores[name]
        tasks, rows = np.array(json.dumps(self.tasks)), np.array(json.dumps(heads))
        np.savez_compressed(file, tasks=tasks, rows=rows, values=values, scores=scores)

    def kinds(self) -> list[str]:
        """The kinds of tasks."""
        return sorted({task["kind"] for task in self.tasks.values()})

    def of(self, kind: str, tuned: bool | None = None) -> list[str]:
        """The tasks of a kind: those on which a default may be chosen, the others, or all."""
        names = sorted(name for name, task in self.tasks.items() if task["kind"] == kind)
        return [name for place, name in enumerate(names) if tuned is None or (place % TUNED == 0) is tuned]

    def methods(self, names: Sequence[str]) -> list[str]:
        """The methods that were measured on every one of some tasks."""
        known = [{method for (task, method), row in self.rows.items() if task == name and worth(row) is not None}
                 for name in names]  # fmt: skip
        return sorted(set.intersection(*known)) if known else []

    def worth(self, name: str, method: str) -> np.ndarray:
        """The worth of a method for each sample of a task.

        Raises:
            ValueError: when it was not measured there.
        """
        found = worth(self.rows[name, method])
        if found is None:
            raise ValueError(f"{method} was not measured on {name}.")
        return found

    def passes(self, names: Sequence[str], method: str) -> float:
        """The mean passes of a method on some tasks."""
        return float(np.mean([self.rows[name, method]["passes"] for name in names]))

    def change(self, names: Sequence[str], method: str, rival: str, aspect: str = "worth") -> Span | None:
        """The difference of two methods, and its interval: the mean over tasks; None if no task has the aspect."""
        pairs = [
            (value(self.rows[name, method], aspect), value(self.rows[name, rival], aspect), self.tasks[name]["groups"])
            for name in names
        ]
        lines = [(one - other, groups) for one, other, groups in pairs if one is not None and other is not None]
        return interval([line for line, _ in lines], [groups for _, groups in lines]) if lines else None


def value(row: dict[str, Any], aspect: str) -> np.ndarray | None:
    """A measure, an aspect or the worth of each sample; None if the row does not have it."""
    if aspect == "worth":
        return worth(row)
    known = [row[name] for name in ASPECTS.get(aspect, (aspect,)) if name in row]
    return np.mean(known, axis=0) if known else None


def worth(row: dict[str, Any]) -> np.ndarray | None:
    """The mean of the aspects of each sample; None if nothing was measured."""
    known = [found for aspect in ASPECTS if (found := value(row, aspect)) is not None]
    return np.mean(known, axis=0) if known else None


def interval(lines: Sequence[np.ndarray], groups: Sequence[Sequence[int]]) -> Span:
    """The mean over tasks of the means over samples, and its 95 % bootstrap interval.

    Tasks are drawn with replacement if there are several, and in each of them groups of samples that are alike.
    """
    random = np.random.default_rng(0)
    drawn = np.stack([_means(line, np.asarray(own), random) for line, own in zip(lines, groups, strict=True)])
    center = float(np.mean([line.mean() for line in lines]))
    count = len(lines)
    picked = random.integers(count, size=(DRAWS, count)) if count > 1 else np.zeros((DRAWS, 1), dtype=int)
    means = drawn[picked, random.integers(DRAWS, size=picked.shape)].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return center, float(low), float(high)


def _means(line: np.ndarray, groups: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Means of a sample of groups, drawn with replacement, `(DRAWS,)`."""
    _, place = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(place, line), np.bincount(place)
    picked = random.integers(len(sums), size=(DRAWS, len(sums)))
    return np.asarray(sums[picked].sum(axis=1) / counts[picked].sum(axis=1))


@dataclasses.dataclass(frozen=True)
class Choice:
    """The best method for the price of the default: chosen on a third of the tasks, measured on the others.

    Attributes:
        kind: kind of the tasks.
        default: row of the default.
        method: name of its row.
        price: share of the passes of the default.
        change: its worth less that of the default on the other tasks.
        verdict: `"better"` or `"worse"` if the interval excludes 0, else `"tied"`.
    """

    kind: str
    default: str
    method: str
    price: float
    change: Span
    verdict: str


def chosen(found: Stored, kind: str, given: str = "") -> Choice | None:
    """Choose the best method for the price of the default; None if it was not measured, or on too few tasks."""
    tuned, held, default = found.of(kind, True), found.of(kind, False), DEFAULTS[given]
    known = found.methods(tuned + held)
    if not held or len(tuned) < 2 or default not in known:
        return None
    most = MORE * found.passes(tuned, default)
    rivals = {
        name: np.mean([found.worth(task, name).mean() for task in tuned])
        for name in known
        if name != default
        and found.rows[tuned[0], name].get("given", "") == given
        and found.passes(tuned, name) <= most
    }
    best = max(rivals, key=lambda name: rivals[name])
    change = found.change(held, best, default)
    assert change is not None
    price = found.passes(held, best) / found.passes(held, default)
    return Choice(kind, default, best, price, change, verdict(change))


def verdict(change: Span) -> str:
    """What an interval says."""
    return "better" if change[1] > 0 else "worse" if change[2] < 0 else "tied"


def spell(span: Span | None) -> str:
    """Write a difference and its interval."""
    return "" if span is None else f"{span[0]:+.3f} [{span[1]:+.3f}, {span[2]:+.3f}]"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    ruler = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ruler, *lines])


def summary(found: Stored) -> str:
    """The table of defaults, which docs/saliency.md shows too."""
    lines = []
    for choice in (chosen(found, kind, given) for given in DEFAULTS for kind in found.kinds()):
        if choice is None:
            continue
        held = found.of(choice.kind, False)
        cells = [spell(found.change(held, choice.method, choice.default, aspect)) for aspect in ASPECTS]
        worth = f"{np.mean([found.worth(name, choice.default).mean() for name in held]):.3f}"
        price = f"{100 * choice.price:.0f} %"
        lines.append([choice.kind, f"{choice.default}: {worth}", choice.method, price, spell(choice.change), *cells,
                      choice.verdict])  # fmt: skip
    head = ["kind", "default and its worth", "best on a third of the tasks", "its passes", "less the default",
            *ASPECTS, ""]  # fmt: skip
    return _table(head, lines)


def _methods(found: Stored, kind: str) -> str:
    """Every method on the tasks of a kind that were not for choosing, or on all where there are few."""
    names = found.of(kind, False) if chosen(found, kind) else found.of(kind)
    known = found.methods(names)
    measures = [one for one in MEASURES if any(one in found.rows[name, DEFAULT] for name in names)]

    def mean(method: str, measure: str) -> float:
        lines = [line for name in names if (line := value(found.rows[name, method], measure)) is not None]
        return float(np.mean([line.mean() for line in lines]))

    lines = []
    for method in sorted(known, key=lambda one: -mean(one, "worth")):
        change = "" if method == DEFAULT else spell(found.change(names, method, DEFAULT))
        seconds = float(np.mean([found.rows[name, method]["seconds"] for name in names]))
        cells = [f"{mean(method, measure):.3f}" for measure in ("worth", *measures)]
        lines.append([method, cells[0], change, *cells[1:], f"{found.passes(names, method):.0f}", f"{seconds:.4f}"])
    return _table(["method", "worth", "less auto", *measures, "passes", "seconds"], lines)


def _left_out(found: Stored, kind: str) -> str:
    """The methods that some tasks of a kind lack, and why."""
    names = found.of(kind)
    reasons: dict[str, str] = {}
    for (task, method), row in found.rows.items():
        if task in names and worth(row) is None:
            why = row.get("why", "").split(";")[0].split(". ")[0].split(", got")[0]
            reasons.setdefault(method, why.replace(f"{method} ", "it ").rstrip("."))
    by_reason: dict[str, list[str]] = {}
    for method, why in reasons.items():
        by_reason.setdefault(why.replace("|", "/"), []).append(method)
    return "\n".join(f"- {', '.join(sorted(methods))}: {why}" for why, methods in sorted(by_reason.items()))


def _tasks(found: Stored) -> str:
    lines = []
    for kind, name in [(one, name) for one in found.kinds() for name in found.of(one)]:
        task, row = found.tasks[name], found.rows[name, DEFAULT]
        most = MORE * row["passes"]
        rivals = [
            method
            for method in found.methods([name])
            if method != DEFAULT
            and found.rows[name, method]["passes"] <= most
            and not found.rows[name, method].get("given")
        ]
        best = max(rivals, key=lambda method: found.worth(name, method).mean())
        count, groups = len(task["groups"]), len(set(task["groups"]))
        samples = f"{count}" if count == groups else f"{count} in {groups} groups"
        cells = [f"{task['quality']:.2f}", samples, row["took"], f"{found.worth(name, DEFAULT).mean():.3f}"]
        lines.append([f"{kind}: {name}", *cells, best, spell(found.change([name], best, DEFAULT))])
    head = ["task", "quality", "samples", "auto took", "its worth", "best for its price", "less auto"]
    return _table(head, lines)


def _head() -> str:
    meanings = "; ".join(f"*{name}*, {meaning}" for name, meaning in MEANINGS.items())
    return f"""# Methods by kind of input

Made by `python -m benchmarks.kinds report` from the numbers of every sample in `benchmarks/kinds.npz`; what
`method="auto"` takes of it is in docs/saliency.md. The networks are small and trained in seconds.

Measures, higher is better: {meanings}. The worth of a map is the mean of three answers: planted (mass), exact (the mean
of zero and rows) and curves, of which a task has one to three. Series have exact values of eight parts, tables of each
of up to 12 columns. Curves are of the probability of the class, or of the output of a regression as a share of its
range.

Passes are counted: forward passes a sample, three for one with a gradient. Seconds are of one core and a sample.
Brackets are 95 % bootstrap intervals of paired differences, over tasks and, in each, over samples, or groups of those
that are alike."""


def report(found: Stored) -> str:
    """The page."""
    parts = [
        _head(),
        "\n## The default against the best method for its price\n",
        "The best of the methods that take at most a quarter more passes than `auto`, by its mean worth on every third "
        "task of a kind; and its worth less that of `auto` on the other tasks.\n",
        summary(found),
    ]
    for kind in found.kinds():
        held = found.of(kind, False) if chosen(found, kind) else found.of(kind)
        parts.append(f"\n## {kind[0].upper()}{kind[1:]}\n")
        parts.append(f"Means of {len(held)} tasks: {'; '.join(held)}.\n")
        parts.append(_methods(found, kind))
        if left := _left_out(found, kind):
            parts.append(f"\nLeft out on some task, or on all:\n\n{left}")
    parts += ["\n## Every task\n", _tasks(found)]
    return "\n".join(parts)
