"""Tasks on tables: formulas and networks whose exact Shapley values are known, and real data of scikit-learn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .kinds_methods import TABLES
from .kinds_models import fit, perceptron
from .kinds_task import Curves, Measure, Subject, Task, agreement, exact_shapley, of_class

SAMPLES, ROWS, MOST = 60, 10, 12
"""Samples of a task; rows of its background; most columns of which exact values are made."""

GRADIENTS, NONE = "tables, with gradients", "tables, no gradients"

Data = tuple[torch.Tensor, torch.Tensor]
"""Rows `(n, columns)` and what is to be predicted, classes or numbers."""


class Formula(nn.Module):
    """A sum of columns, products of pairs and the larger of two: w x + 2 x0 x1 - 1.5 x2 x3 + max(x4, x5)."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, columns))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return one number for each row, (batch, 1)."""
        pairs = 2 * x[:, 0] * x[:, 1] - 1.5 * x[:, 2] * x[:, 3] + torch.maximum(x[:, 4], x[:, 5])
        return (x @ self.weight + pairs)[:, None]


class Coded(nn.Module):
    """Embeds columns that hold the codes of categories, and reads them with the others."""

    def __init__(self, codes: int, numbers: int, outputs: int, kinds: int = 5) -> None:
        super().__init__()
        self.words = nn.ModuleList(nn.Embedding(kinds, 4) for _ in range(codes))
        self.net = perceptron(4 * codes + numbers, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, outputs) of rows whose first columns are codes."""
        parts = [words(x[:, column].long()) for column, words in enumerate(self.words)]
        return self.net(torch.cat([*parts, x[:, len(self.words) :]], dim=1))


class Scaled(nn.Module):
    """Scales raw columns itself."""

    def __init__(self, net: nn.Module, x: torch.Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", x.mean(dim=0))
        self.register_buffer("spread", x.std(dim=0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the network makes of the scaled columns."""
        return self.net((x - self.mean) / self.spread)  # type: ignore[operator]


class Ensemble(nn.Module):
    """The mean of several networks."""

    def __init__(self, build: Callable[[], nn.Module], members: int = 5) -> None:
        super().__init__()
        self.members = nn.ModuleList(build() for _ in range(members))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean output."""
        return torch.stack([member(x) for member in self.members]).mean(dim=0)


class Forest(nn.Module):
    """Gradient boosting of scikit-learn: its margin; the logits of two classes are half of it, up and down."""

    def __init__(self, trees: Any, classes: bool) -> None:
        super().__init__()
        self.trees, self.classes = trees, classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, 1), or (batch, 2) for classes."""
        rows = x.detach().double().numpy()
        margin = self.trees.decision_function(rows) if self.classes else self.trees.predict(rows)
        margin = torch.from_numpy(margin).to(x)[:, None]
        return torch.cat([-margin / 2, margin / 2], dim=1) if self.classes else margin


def normal(count: int, columns: int, seed: int, alike: float = 0.0) -> torch.Tensor:
    """Rows of normal numbers, whose columns have a correlation."""
    draw = torch.Generator().manual_seed(seed)
    common = torch.randn(count, 1, generator=draw)
    return (1 - alike) ** 0.5 * torch.randn(count, columns, generator=draw) + alike**0.5 * common


def _noisy(score: torch.Tensor, seed: int = 9) -> torch.Tensor:
    return score + 0.3 * torch.randn(score.shape, generator=torch.Generator().manual_seed(seed))


def correlated() -> Data:
    """Ten columns with a correlation of .7, and a formula of them."""
    x = normal(3000, 10, 1, 0.7)
    return x, _noisy(Formula(10)(x)[:, 0].detach())


def one_hot() -> Data:
    """Two categories of three kinds as six columns, and four numbers; kinds change the sign of numbers."""
    draw = torch.Generator().manual_seed(1)
    codes = torch.randint(3, (3000, 2), generator=draw)
    numbers = normal(3000, 4, 2)
    x = torch.cat([nn.functional.one_hot(codes[:, k], 3).float() for k in range(2)] + [numbers], dim=1)
    return x, _noisy((codes[:, 0] - 1) * numbers[:, 0] + (codes[:, 1] == 2) * 1.5 + numbers[:, 1] * numbers[:, 2])


def coded() -> Data:
    """Three columns of codes, and eight numbers."""
    draw = torch.Generator().manual_seed(1)
    codes = torch.randint(5, (3000, 3), generator=draw)
    numbers = normal(3000, 8, 2)
    effect = torch.tensor([-1.5, 0.5, 2.0, -0.5, 1.0])
    score = effect[codes[:, 0]] + effect[codes[:, 1]] * numbers[:, 0] + numbers[:, 1] - numbers[:, 2] * numbers[:, 3]
    return torch.cat([codes.float(), numbers], dim=1), _noisy(score)


def unscaled() -> Data:
    """Ten columns between .01 and 100,000 in size, most of them far from zero."""
    rows = normal(3000, 10, 1, 0.3)
    size = 10 ** torch.linspace(-2, 5, 10)
    return size * (rows + torch.linspace(0, 6, 10)), _noisy(Formula(10)(rows)[:, 0].detach())


def steps() -> Data:
    """Twelve columns, of which some matter only above a threshold, and two only together."""
    x = normal(3000, 12, 1)
    score = 2 * (x[:, 0] > 0.5) + x[:, 1] * (x[:, 2] > 0) + (x[:, 3] > 0).float() * (x[:, 4] > 0) + 0.5 * x[:, 5]
    return x, _noisy(score)


def bundled(name: str, columns: list[int] | None = None, scaled: bool = True) -> Data:
    """A data set of scikit-learn, rows mixed by a fixed seed; targets of a regression have mean 0 and deviation 1."""
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    order = torch.randperm(len(bunch.data), generator=torch.Generator().manual_seed(0))
    x, y = torch.from_numpy(bunch.data).float()[order], torch.from_numpy(bunch.target)[order]
    x = x if columns is None else x[:, columns]
    if scaled:
        x = (x - x.mean(dim=0)) / x.std(dim=0).clamp_min(1e-6)
    return x, ((y - y.mean()) / y.std()).float() if name == "diabetes" else y


def trees(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """Boosted trees, fitted."""
    from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor

    kind = GradientBoostingRegressor if y.is_floating_point() else GradientBoostingClassifier
    return Forest(kind(n_estimators=30, random_state=0).fit(x.numpy(), y.numpy()), not y.is_floating_point())


def trained(build: Callable[[torch.Tensor], nn.Module], count: int = 300) -> Callable[..., nn.Module]:
    """A network that is built from the rows and trained on them."""
    return lambda x, y: fit(build(x), (x, y), count)


def _subject(data: Callable[[], Data], make: Callable[..., nn.Module]) -> Subject:
    """Train on two thirds of the rows, and measure maps of others."""
    x, y = data()
    cut = max(len(x) * 2 // 3, len(x) - 300)
    torch.manual_seed(0)
    model = make(x[:cut], y[:cut]).eval()
    with torch.inference_mode():
        out = model(x[cut:])
    regression = y.is_floating_point()
    if regression:
        quality = float(1 - (out[:, 0] - y[cut:]).square().mean() / y[cut:].var())
    else:
        quality = float((out.argmax(dim=1) == y[cut:]).float().mean())
    own, labels = x[cut:][:SAMPLES], y[cut:][:SAMPLES]
    target = None if regression else labels.tolist()
    rows = x[torch.randperm(cut, generator=torch.Generator().manual_seed(1))[:ROWS]]
    measures: dict[str, Measure] = {}
    score, columns = of_class(model, target), torch.arange(x.shape[1])[None]
    if x.shape[1] <= MOST:
        for name, others in (("zero", torch.zeros_like(rows[:1])), ("rows", rows)):
            exact = exact_shapley(score, own, others, columns)
            measures[name] = agreement(exact, lambda found: found.tensor)
    fills = rows.mean(dim=0), own.roll(7, dims=0), own.roll(13, dims=0)
    measures["curves"] = Curves(model, own, target, fills, scale=float(out.max() - out.min()) if regression else 1.0)
    return Subject(model, own, target, measures, quality, None, rows)


def tables() -> Iterator[Task]:
    """The tasks."""

    def task(name: str, kind: str, data: Callable[[], Data], make: Callable[..., nn.Module]) -> Task:
        return Task(name, kind, functools.partial(_subject, data, make), TABLES, real=not name.startswith("made"))

    def real(name: str, columns: int | None = None) -> Callable[[], Data]:
        return lambda: bundled(name, None if columns is None else list(range(columns)))

    def net(outputs: int) -> Callable[..., nn.Module]:
        return trained(lambda x: perceptron(x.shape[1], outputs))

    def formula(columns: int) -> Callable[[], Data]:
        return lambda: (normal(600, columns, 1), Formula(columns)(normal(600, columns, 1))[:, 0].detach())

    yield from (
        task("made, 10 correlated columns, a perceptron", GRADIENTS, correlated, net(1)),
        task("breast cancer, 10 columns, a perceptron", GRADIENTS, real("breast_cancer", 10), net(2)),
        task("made, 10 columns with products, their formula", GRADIENTS, formula(10), lambda x, y: Formula(10)),
        task("made, 11 columns, 3 of codes, embeddings", GRADIENTS, coded, trained(lambda x: Coded(3, 8, 1), 500)),
        task("diabetes, 10 columns, an ensemble", GRADIENTS, real("diabetes"),
             trained(lambda x: Ensemble(lambda: perceptron(10, 1)), 100)),
        task("made, 10 unscaled columns, a network that scales", GRADIENTS, unscaled,
             trained(lambda x: Scaled(perceptron(10, 1), x))),
        task("breast cancer, 30 columns, a perceptron", GRADIENTS, real("breast_cancer"), net(2)),
        task("made, 10 columns, 6 of them one-hot, a perceptron", GRADIENTS, one_hot, net(1)),
    )  # fmt: skip
    yield from (
        task("made, 12 columns with steps, boosted trees", NONE, steps, trees),
        task("breast cancer, 10 columns, boosted trees", NONE, real("breast_cancer", 10), trees),
    )  # fmt: skip
