"""Coverage of the intervals of every method that draws, on tasks whose values are known.

python -m benchmarks.intervals > benchmarks/intervals.md
"""

import dataclasses
import itertools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import layerlens
from layerlens.analyzers.sensitivity import inputs
from layerlens.faithfulness import known_shapley

HEAD = """# Do intervals cover?

Written by `python -m benchmarks.intervals`. 90 % intervals (`found.interval(0.9)`; of rankings the value less and plus
1.645 standard errors) of 200 seeds, and how many hold the value: the mean over values, with its standard error over
seeds. *Known*: in closed form or by all coalitions. *Unpenalized*: the regression on all coalitions, without a penalty.
*Mean over seeds*: the mean of the method itself. The last column is the half width over 1.645 true standard deviations,
root mean squares: 1 is right for normal values, more is too wide.

| method | task | what it should hold | held | width |
| --- | --- | --- | --- | --- |"""
REPEATS = 200
SHARE = 0.9


class Net(nn.Module):
    """A small network of tanh, `(batch, columns)` to `(batch, 2)`."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(columns)
        self.one = nn.Parameter(torch.randn(16, columns, generator=generator).double() / columns**0.5 * 2)
        self.two = nn.Parameter(torch.randn(2, 16, generator=generator).double() / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores."""
        return torch.tanh(x.flatten(1) @ self.one.T) @ self.two.T


class Cubic(nn.Module):
    """The sum of x_i^3, whose gradient under normal noise is known: E 3 (x + e)^2 = 3 (x^2 + s^2)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the score."""
        return x.pow(3).sum(dim=1, keepdim=True)


class Text(nn.Module):
    """A model of 40 token ids: an embedding, and a network of the sum."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(100, 8).double()
        self.embedding.weight.data = torch.randn(100, 8, generator=generator).double() / 3
        self.net = Net(8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return scores."""
        return self.net(self.embedding(ids).sum(dim=1))


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    """Normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def every_coalition(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All subsets of the columns of one sample, `(2^d, d)`, and their scores for class 1."""
    keep = torch.tensor(list(itertools.product((0.0, 1.0), repeat=x.shape[1]))).double()
    with torch.no_grad():
        return keep, model(keep * x)[:, 1]


def regression(model: nn.Module, x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """The coefficients of the scores on all subsets, without a penalty, `(1, d)`."""
    keep, scores = every_coalition(model, x)
    root = torch.ones(len(keep)).double() if weight is None else weight.sqrt()
    design = torch.cat([torch.ones(len(keep), 1).double(), keep], dim=1)
    found = torch.linalg.lstsq(root[:, None] * design, (root * scores)[:, None]).solution
    return found[1:].T


def lime_weights(columns: int, width: float = 0.25) -> torch.Tensor:
    """LIME's kernel of all subsets, `(2^d,)`."""
    keep = torch.tensor(list(itertools.product((0.0, 1.0), repeat=columns))).double()
    return torch.exp(-((1 - keep.mean(dim=1).sqrt()) ** 2) / width**2)


@dataclasses.dataclass(frozen=True)
class Row:
    """A method on a task.

    Attributes:
        method: name of the method.
        task: model and input in words.
        what: what is covered: the value known, or the mean over seeds.
        run: draws once with a seed; returns values, low and high ends.
        truth: right values; None for the mean over the seeds that were run.
    """

    method: str
    task: str
    what: str
    run: Callable[[int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    truth: torch.Tensor | None


def drawn(model: nn.Module, x: torch.Tensor, method: str, target: Any, **options: Any) -> Callable[[int], Any]:
    """A run of a saliency method by seed."""

    def run(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        found = layerlens.saliency(model, x, target=target, method=method, seed=seed, progress=False, **options)
        low, high = found.interval(SHARE)
        return found.tensor, low, high

    return run


def ranked(measure: Callable[..., Any], *args: Any, **options: Any) -> Callable[[int], Any]:
    """A run of a measure of sensitivity by seed: values less and plus 1.645 standard errors."""

    def run(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        found = measure(*args, seed=seed, progress=False, **options)
        return found.values, found.values - 1.645 * found.error, found.values + 1.645 * found.error

    return run


def rows() -> list[Row]:
    """Every method on its tasks."""
    task, net, x = known_shapley(1, 8, 8), Net(10), normal(1, 10)
    products, px, aim = task.model, task.x, task.target
    exact = layerlens.saliency(net, x, target=1, method="kernel_shap", samples=2000).tensor
    known, found = "known", []
    for samples in (100, 200):
        found.append(
            Row(
                "kernel_shap",
                f"8 columns, products, samples={samples}",
                known,
                drawn(products, px, "kernel_shap", aim, samples=samples),
                task.values,
            )
        )
    found.append(
        Row("kernel_shap", "10 columns, tanh network, samples=512", known, drawn(net, x, "kernel_shap", 1), exact)
    )
    for count in (10, 26):
        found.append(
            Row(
                "shapley_sampling",
                f"8 columns, products, permutations={count}",
                known,
                drawn(products, px, "shapley_sampling", aim, permutations=count),
                task.values,
            )
        )
    found.append(
        Row("shapley_sampling", "10 columns, tanh network", known, drawn(net, x, "shapley_sampling", 1), exact)
    )
    plain = regression(net, x, lime_weights(10))
    found.append(
        Row("lime", "10 columns, tanh network, ridge=1e-9", known, drawn(net, x, "lime", 1, ridge=1e-9), plain)
    )
    found.append(Row("lime", "the same, ridge=1 (default)", "unpenalized", drawn(net, x, "lime", 1), plain))
    found.append(Row("lime", "the same, ridge=1 (default)", "mean over seeds", drawn(net, x, "lime", 1), None))
    even = regression(net, x)
    found.append(Row("rise", "10 columns, tanh network", "unpenalized", drawn(net, x, "rise", 1), even))
    found.append(
        Row("rise", "the same, sampling='random'", "unpenalized", drawn(net, x, "rise", 1, sampling="random"), even)
    )
    keep, scores = every_coalition(net, x)
    mean = (keep * scores[:, None]).mean(dim=0, keepdim=True) / 0.5
    found.append(
        Row(
            "rise",
            "the same, random, estimate='mean'",
            known,
            drawn(net, x, "rise", 1, sampling="random", estimate="mean"),
            mean,
        )
    )
    picture, image = Net(64), normal(1, 1, 8, 8)
    found.append(
        Row("rise", "8 x 8 picture, cells=4", "mean over seeds", drawn(picture, image, "rise", 1, cells=4), None)
    )
    found.append(
        Row(
            "rise",
            "the same, sampling='random'",
            "mean over seeds",
            drawn(picture, image, "rise", 1, cells=4, sampling="random"),
            None,
        )
    )
    point = normal(1, 6)
    for samples in (10, 25):
        found.append(
            Row(
                "smooth_grad",
                f"cubes, samples={samples}",
                known,
                drawn(Cubic(), point, "smooth_grad", 0, stdevs=0.5, samples=samples),
                3 * (point**2 + 0.25),
            )
        )
    fourth = 9 * (point**4 + 6 * point**2 * 0.25 + 3 * 0.25**2)
    found.append(
        Row("smooth_grad_squared", "cubes", known, drawn(Cubic(), point, "smooth_grad_squared", 0, stdevs=0.5), fourth)
    )
    found.append(
        Row(
            "smooth_grad_squared",
            "cubes, samples=200",
            known,
            drawn(Cubic(), point, "smooth_grad_squared", 0, stdevs=0.5, samples=200),
            fourth,
        )
    )
    zero = torch.zeros(1, 6).double()
    found.append(
        Row(
            "gradient_shap",
            "cubes, one reference",
            known,
            drawn(Cubic(), point, "gradient_shap", 0, baselines=zero),
            point**3,
        )
    )
    total = layerlens.saliency(net, x, target=1, method="sobol", draws=2**15, seed=9).tensor
    for draws in (32, 128):
        found.append(
            Row(
                "sobol (map)",
                f"10 columns, tanh network, draws={draws}",
                known,
                drawn(net, x, "sobol", 1, draws=draws),
                total,
            )
        )
    text, ids = Text(), torch.randint(100, (1, 40), generator=torch.Generator().manual_seed(3))
    fills = layerlens.saliency(text, ids, target=1, method="leave_one_out", draws=39).tensor
    for draws in (4, 8):
        found.append(
            Row(
                "leave_one_out",
                f"40 tokens, draws={draws}",
                known,
                drawn(text, ids, "leave_one_out", 1, draws=draws),
                fills,
            )
        )
    wide = {"ranges": (-1, 1), "target": 1}
    many = inputs.sobol(net, x, samples=2**15, bootstrap=0, **wide).values
    found.append(
        Row(
            "sobol (ranking)",
            "10 columns, tanh network, samples=256",
            known,
            ranked(inputs.sobol, net, x, samples=256, **wide),
            many,
        )
    )
    steps = inputs.morris(net, x, trajectories=20000, **wide).values
    found.append(Row("morris", "10 columns, tanh network", known, ranked(inputs.morris, net, x, **wide), steps))
    return found


def covered(row: Row, repeats: int = REPEATS) -> tuple[float, float, float]:
    """Return the share of intervals that hold the value, its standard error over seeds, and error over true spread."""
    runs = [row.run(seed) for seed in range(repeats)]
    values, low, high = (torch.stack([run[part].double().flatten() for run in runs]) for part in range(3))
    truth = values.mean(dim=0) if row.truth is None else row.truth.double().flatten()
    inside = ((low <= truth + 1e-12) & (truth - 1e-12 <= high)).double().mean(dim=1)
    ratio = ((high - low).square().mean() ** 0.5 / 2 / 1.645) / values.var(dim=0).mean().sqrt()
    return float(inside.mean()), float(inside.std() / repeats**0.5), float(ratio)


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    only = sys.argv[1:]
    print(HEAD)
    for row in rows():
        if not only or row.method.split()[0] in only:
            share, error, ratio = covered(row)
            print(
                f"| `{row.method}` | {row.task} | {row.what} | {100 * share:.0f} ± {100 * error:.0f} % | {ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
