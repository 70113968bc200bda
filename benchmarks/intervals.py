"""Coverage of the intervals of every method that draws, on tasks whose values are known.

python -m benchmarks.intervals measure [METHOD ...]     (ten minutes on one core; can be taken up again)
python -m benchmarks.intervals report > benchmarks/intervals.md

`intervals.npz` holds value, low and high end of every seed, so that the table is made again in seconds. A row that was
changed is measured again when its arrays are gone: `python -m benchmarks.intervals forget METHOD ...`.
"""

import dataclasses
import functools
import itertools
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import layerlens
from layerlens.analyzers.sensitivity import inputs
from layerlens.faithfulness import known_shapley
from layerlens.results.intervals import interval_of

HEAD = """# Do intervals cover?

Written by `python -m benchmarks.intervals`. 90 % intervals (`found.interval(0.9)`; of rankings by `found.error` and
`found.degrees`) of 200 seeds, and how many hold the value: the mean over up to 30 values, with its standard error over
seeds. *Known*: in closed form, by all coalitions, or by very many draws. *Unpenalized*: the regression on all
coalitions, without a penalty. *Mean over seeds*: the mean of the method itself. Width: the half width over 1.645 true
standard deviations, root mean squares: 1 is right for normal values, more is too wide. Draws: of rows with `until=`,
the mean number and its range over seeds; each seed looked at its intervals several times.

| method | task | what it should hold | held | width | draws |
| --- | --- | --- | --- | --- | --- |"""
REPEATS, AT_ONCE, MOST = 200, 50, 30
SHARE = 0.9
STORED = Path(__file__).parent / "intervals.npz"


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


class Sum(nn.Module):
    """A weighted sum of six columns."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the score."""
        return x @ torch.tensor([[3.0, 2.0, 1.0, 0.5, 0.1, 0.0]]).to(x).T


class Ishigami(nn.Module):
    """sin u1 + 7 sin^2 u2 + .1 u3^4 sin u1, u in -pi..pi (Ishigami & Homma 1990), of x in -1..1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the score."""
        one, two, three = (math.pi * x).T
        return one.sin() + 7 * two.sin() ** 2 + 0.1 * three**4 * one.sin()


class Holes(nn.Module):
    """Sobol's g of six columns, the product of (2 |x_i| + a_i) / (1 + a_i), of x in -1..1 (Saltelli & Sobol 1995)."""

    a = torch.tensor([0.0, 1.0, 4.5, 9.0, 99.0, 99.0]).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the score."""
        score: torch.Tensor = ((2 * x.abs() + self.a) / (1 + self.a)).prod(dim=1)
        return score


class Text(nn.Module):
    """A model of token ids: an embedding, and a network of the sum, or of the sum of the embedding's tanh."""

    def __init__(self, *, bent: bool = False) -> None:
        super().__init__()
        self.bent = bent
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(100, 8).double()
        self.embedding.weight.data = torch.randn(100, 8, generator=generator).double() / 3
        self.net = Net(8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return scores."""
        states = self.embedding(ids)
        scores: torch.Tensor = self.net((states.tanh() if self.bent else states).sum(dim=1))
        return scores


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
    found: torch.Tensor = torch.linalg.lstsq(root[:, None] * design, (root * scores)[:, None]).solution[1:].T
    return found


def lime_weights(columns: int, width: float = 0.25) -> torch.Tensor:
    """LIME's kernel of all subsets, `(2^d,)`."""
    keep = torch.tensor(list(itertools.product((0.0, 1.0), repeat=columns))).double()
    return torch.exp(-((1 - keep.mean(dim=1).sqrt()) ** 2) / width**2)


Task = tuple[nn.Module, torch.Tensor]
Runs = Callable[[int], tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]]
"""By seed: values, low and high ends, and the number of draws."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A method on a task.

    Attributes:
        method: name of the method.
        task: model and input in words; rows with the same method and task share their runs.
        what: what is covered: the value known, or the mean over seeds.
        run: draws once with a seed.
        truth: makes the right values; None for the mean over the seeds that were run.
    """

    method: str
    task: str
    what: str
    run: Runs
    truth: Callable[[], torch.Tensor] | None

    @property
    def key(self) -> str:
        """Name of its runs in the file."""
        return f"{self.method}: {self.task}".replace("/", " by ")


def drawn(task: Task, method: str, target: Any, **options: Any) -> Runs:
    """A run of a saliency method by seed."""

    def run(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        found = layerlens.saliency(*task, target=target, method=method, seed=seed, progress=False, **options)
        low, high = found.interval(SHARE)
        assert isinstance(low, torch.Tensor) and isinstance(high, torch.Tensor)
        option = next((name for name in ("samples", "permutations", "draws") if name in found.settings), None)
        return found.tensor, low, high, found.settings[option] if option else 0

    return run


def ranked(measure: Callable[..., Any], *args: Any, **options: Any) -> Runs:
    """A run of a measure of sensitivity by seed."""

    def run(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        found = measure(*args, seed=seed, progress=False, **options)
        return found.values, *interval_of(found.values, found.error, found.degrees, share=SHARE), 0

    return run


def layered(measure: Callable[..., Any], *args: Any, draws: int, **options: Any) -> Runs:
    """A run of a measure of layers or parts by seed, whose error over draws has draws - 1 degrees of freedom."""

    def run(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        found = measure(*args, seed=seed, draws=draws, progress=False, **options)
        return found.values, *interval_of(found.values, found.error, draws - 1, share=SHARE), draws

    return run


def of_many(measure: Callable[..., Any], *args: Any, **options: Any) -> torch.Tensor:
    """The values of a measure with many draws."""
    found: torch.Tensor = measure(*args, progress=False, **options).values
    return found


def pairs(task: Task, target: int, **options: Any) -> Runs:
    """A run of `interactions` by seed: its pairs, and single features."""

    def run(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        found = layerlens.interactions(*task, target=target, seed=seed, progress=False, **options)
        assert isinstance(found, layerlens.results.Matrix)
        return found.values, *found.interval(SHARE), found.settings["coalitions"]

    return run


def exact(task: Task, target: int, **options: Any) -> Callable[[], torch.Tensor]:
    """Its exact values."""
    return lambda: layerlens.interactions(*task, target=target, budget=2**20, progress=False, **options).values


TASK, NET, X = known_shapley(1, 8, 8), Net(10), normal(1, 10)
PRODUCTS = (TASK.model, TASK.x)
DEEP = nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3)).double()
for place, weight in enumerate(DEEP.parameters()):
    weight.data = normal(*weight.shape, seed=place) / 2
WIDER = known_shapley(1, 12, 14)
TWELVE = (WIDER.model, WIDER.x)
POINT, SPREAD = normal(1, 6), 0.5
CUBES, NOISE = (Cubic(), POINT), {"stdevs": SPREAD}
PICTURE = (Net(64), normal(1, 1, 8, 8))
TEXT = (Text(), torch.randint(100, (1, 40), generator=torch.Generator().manual_seed(3)))
LONG = (Text(), torch.randint(100, (1, 200), generator=torch.Generator().manual_seed(3)))
BENT = (Text(bent=True), TEXT[1])
LINEAR = (Sum(), torch.zeros(1, 6).double())
RELATIVE = {"metric": "relative_change"}
ABLATED: dict[str, Any] = {"by": "channel", "value": "resample", "target": 1, "reference": normal(400, 10, seed=6)}
REFERENCES = normal(4, 10, seed=2)
PEOPLE = normal(12, 10, seed=4)
WIDE: dict[str, Any] = {"ranges": (-1, 1), "target": 1}


def shapley() -> torch.Tensor:
    """Shapley values of the products."""
    assert TASK.values is not None
    return TASK.values


@functools.cache
def shapley_of_net() -> torch.Tensor:
    """Shapley values of the network, by all coalitions."""
    return layerlens.saliency(NET, X, target=1, method="kernel_shap", samples=2000).tensor


def lime_of_net() -> torch.Tensor:
    """LIME of the network on all coalitions."""
    return regression(NET, X, lime_weights(10))


def rise_of_net() -> torch.Tensor:
    """The regression of the network on all coalitions."""
    return regression(NET, X)


def rise_of_products() -> torch.Tensor:
    """The regression of the products on all coalitions."""
    keep = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8))).double()
    with torch.no_grad():
        scores = TASK.model((keep * TASK.x).to(TASK.x))[:, int(TASK.target)].double()
    design = torch.cat([torch.ones(len(keep), 1).double(), keep], dim=1)
    found: torch.Tensor = torch.linalg.lstsq(design, scores[:, None]).solution[1:].T
    return found


def mean_of_net() -> torch.Tensor:
    """The mean score of the coalitions that keep a column, over the share that does."""
    keep, scores = every_coalition(NET, X)
    return (keep * scores[:, None]).mean(dim=0, keepdim=True) / 0.5


def slope_of_cubes() -> torch.Tensor:
    """The mean gradient of the cubes."""
    return 3 * (POINT**2 + SPREAD**2)


def square_of_cubes() -> torch.Tensor:
    """The mean squared gradient of the cubes: 9 E (x + e)^4."""
    return 9 * (POINT**4 + 6 * POINT**2 * SPREAD**2 + 3 * SPREAD**4)


def variance_of_cubes() -> torch.Tensor:
    """The variance of the gradient of the cubes: 9 Var (2 x e + e^2)."""
    return 9 * (4 * POINT**2 * SPREAD**2 + 2 * SPREAD**4)


def shares_of_linear() -> torch.Tensor:
    """First and total order of a sum: the squares of its weights over their sum."""
    squares = LINEAR[0](torch.eye(6).double()).square()
    return (squares / squares.sum()).repeat(1, 2)


def indices_of_ishigami() -> torch.Tensor:
    """First and total order of Ishigami's function, in closed form."""
    one, two, pair = (1 + math.pi**4 / 50) ** 2 / 2, 49 / 8, math.pi**8 / 100 * (1 / 18 - 1 / 50)
    found = torch.tensor([[one, one + pair], [two, two], [0, pair]], dtype=torch.float64)
    return found / (one + two + pair)


def indices_of_holes() -> torch.Tensor:
    """First and total order of Sobol's g, in closed form: the variance of a factor is 1 / 3 / (1 + a)^2."""
    part = 1 / 3 / (1 + Holes.a) ** 2
    whole = (1 + part).prod()
    return torch.stack([part, part * whole / (1 + part)], dim=1) / (whole - 1)


def by_others() -> torch.Tensor:
    """The mean fall of the score of the network over all other samples, by column."""
    found = torch.zeros_like(PEOPLE)
    with torch.no_grad():
        for shift in range(1, len(PEOPLE)):
            for column in range(PEOPLE.shape[1]):
                changed = PEOPLE.clone()
                changed[:, column] = PEOPLE.roll(shift, dims=0)[:, column]
                found[:, column] += (NET(PEOPLE) - NET(changed))[:, 1] / (len(PEOPLE) - 1)
    return found


def many(task: Task, method: str, target: int, **options: Any) -> Callable[[], torch.Tensor]:
    """The values of very many draws."""
    return lambda: layerlens.saliency(*task, target=target, method=method, seed=9999, progress=False, **options).tensor


def rows() -> list[Row]:
    """Every method on its tasks: a line each."""
    net, k, u, m = (NET, X), "known", "unpenalized", "mean over seeds"
    ten, cubes, aim = "10 columns, tanh network", "cubes", TASK.target
    total = many(net, "sobol", 1, draws=2**16)
    fills = many(TEXT, "leave_one_out", 1, draws=39)
    varied_text = many(BENT, "var_grad", 1, samples=20_000, **NOISE)
    noisy_text = many(BENT, "smooth_grad", 1, samples=20_000, **NOISE)
    indices = functools.partial(inputs.sobol, *net, samples=2**15, replicates=1, **WIDE)
    rankings = [
        (ten, net, WIDE, lambda: indices().values),
        ("Ishigami", (Ishigami(), torch.zeros(1, 3).double()), {"ranges": (-1, 1)}, indices_of_ishigami),
        ("Sobol's g, 6 columns", (Holes(), torch.zeros(1, 6).double()), {"ranges": (-1, 1)}, indices_of_holes),
        ("6 columns, linear", LINEAR, {"ranges": (-1, 1)}, shares_of_linear),
    ]
    found = [
        *(
            Row("kernel_shap", f"8 columns, products, samples={n}", k,
                drawn(PRODUCTS, "kernel_shap", aim, samples=n), shapley)
            for n in (100, 200)
        ),
        Row("kernel_shap", f"{ten}, samples=512", k, drawn(net, "kernel_shap", 1), shapley_of_net),
        *(
            Row("shapley_sampling", f"8 columns, products, permutations={n}", k,
                drawn(PRODUCTS, "shapley_sampling", aim, permutations=n), shapley)
            for n in (10, 26)
        ),
        Row("shapley_sampling", ten, k, drawn(net, "shapley_sampling", 1), shapley_of_net),
        Row("lime", f"{ten}, ridge=1e-9", k, drawn(net, "lime", 1, ridge=1e-9), lime_of_net),
        Row("lime", f"{ten}, ridge=1 (default)", u, drawn(net, "lime", 1), lime_of_net),
        Row("lime", f"{ten}, ridge=1 (default)", m, drawn(net, "lime", 1), None),
        Row("rise", ten, u, drawn(net, "rise", 1), rise_of_net),
        Row("rise", f"{ten}, sampling='random'", u, drawn(net, "rise", 1, sampling="random"), rise_of_net),
        Row("rise", f"{ten}, random, estimate='mean'", k,
            drawn(net, "rise", 1, sampling="random", estimate="mean"), mean_of_net),
        Row("rise", "8 columns, products, samples=64", u, drawn(PRODUCTS, "rise", aim, samples=64), rise_of_products),
        Row("rise", "8 columns, products", u, drawn(PRODUCTS, "rise", aim), rise_of_products),
        Row("rise", "8 x 8 picture, cells=4", m, drawn(PICTURE, "rise", 1, cells=4), None),
        Row("rise", "8 x 8 picture, cells=4, sampling='random'", m,
            drawn(PICTURE, "rise", 1, cells=4, sampling="random"), None),
        *(
            Row("smooth_grad", f"{cubes}, samples={n}", k,
                drawn(CUBES, "smooth_grad", 0, samples=n, **NOISE), slope_of_cubes)
            for n in (10, 25)
        ),
        Row("smooth_grad", "40 tokens, tanh of embeddings", k, drawn(BENT, "smooth_grad", 1, **NOISE), noisy_text),
        *(
            Row("smooth_grad_squared", f"{cubes}, samples={n}", k,
                drawn(CUBES, "smooth_grad_squared", 0, samples=n, **NOISE), square_of_cubes)
            for n in (25, 200)
        ),
        *(
            Row("var_grad", f"{cubes}, samples={n}", k,
                drawn(CUBES, "var_grad", 0, samples=n, **NOISE), variance_of_cubes)
            for n in (25, 200)
        ),
        *(
            Row("var_grad", f"40 tokens, tanh of embeddings, samples={n}", k,
                drawn(BENT, "var_grad", 1, samples=n, **NOISE), varied_text)
            for n in (25, 200)
        ),
        Row("gradient_shap", f"{cubes}, one reference", k,
            drawn(CUBES, "gradient_shap", 0, baselines=torch.zeros(1, 6).double()), lambda: POINT**3),
        Row("gradient_shap", f"{ten}, four references", k, drawn(net, "gradient_shap", 1, baselines=REFERENCES),
            many(net, "gradient_shap", 1, baselines=REFERENCES, samples=2**14)),
        Row("gradient_shap", f"{ten}, references drawn", m, drawn(net, "gradient_shap", 1), None),
        Row("gradient_shap", "40 tokens, tanh of embeddings, one reference", k,
            drawn(BENT, "gradient_shap", 1, baselines=["zero"]),
            many(BENT, "gradient_shap", 1, baselines=["zero"], samples=2**12)),
        Row("deep_shap", f"{ten}, references drawn", m, drawn(net, "deep_shap", 1), None),
        *(
            Row("sobol (map)", f"{ten}, draws={n}", k, drawn(net, "sobol", 1, draws=n), total) for n in (32, 128)
        ),
        *(
            Row("leave_one_out", f"40 tokens, draws={n}", k, drawn(TEXT, "leave_one_out", 1, draws=n), fills)
            for n in (4, 8)
        ),
        *(
            Row("permutation", f"12 samples of 10 columns, draws={n}", k,
                drawn((NET, PEOPLE), "permutation", 1, draws=n), by_others)
            for n in (10, 40)
        ),
        *(
            Row("sobol (ranking)", f"{task}, samples={n}", k, ranked(inputs.sobol, *known, samples=n, **options), truth)
            for task, known, options, truth in rankings
            for n in (64, 256, 1024)
        ),
        Row("morris", ten, k, ranked(inputs.morris, *net, **WIDE),
            lambda: inputs.morris(*net, trajectories=20000, **WIDE).values),
        *(
            Row("interactions", f"{ten}, {index}, budget={n}", k, pairs(net, 1, index=index, budget=n),
                exact(net, 1, index=index))
            for index in ("k-SII", "STII", "FSII")
            for n in (232, 512)
        ),
        Row("interactions", "12 columns, products, k-SII, budget=1000", k,
            pairs(TWELVE, int(WIDER.target), budget=1000), exact(TWELVE, int(WIDER.target))),
        Row("interactions", f"{ten}, k-SII, until=0.02", k, pairs(net, 1, budget=1000, until=0.02), exact(net, 1)),
        *(
            Row(measure.__name__, f"3 layers, 4 samples, draws={n}", k,
                layered(measure, DEEP, PEOPLE[:4], draws=n, **options),
                functools.partial(of_many, measure, DEEP, PEOPLE[:4], draws=4096, seed=99, **options))
            for measure, options in ((layerlens.jacobian, {}), (layerlens.noise_response, RELATIVE))
            for n in (8, 32)
        ),
        *(
            Row("ablate", f"units of 3 layers, values of other samples, draws={n}", k,
                layered(layerlens.ablate, DEEP, PEOPLE[:2], draws=n, **ABLATED),
                functools.partial(of_many, layerlens.ablate, DEEP, PEOPLE[:2], draws=400, **ABLATED))
            for n in (8,)
        ),
        Row("kernel_shap", f"{ten}, until=0.1", k,
            drawn(net, "kernel_shap", 1, until=0.1, samples=1000), shapley_of_net),
        Row("shapley_sampling", f"{ten}, until=0.07", k,
            drawn(net, "shapley_sampling", 1, until=0.07, permutations=1000), shapley_of_net),
        Row("lime", f"{ten}, ridge=1e-9, until=0.2", k,
            drawn(net, "lime", 1, ridge=1e-9, until=0.2, samples=9000), lime_of_net),
        Row("rise", f"{ten}, until=0.04", u, drawn(net, "rise", 1, until=0.04, samples=9000), rise_of_net),
        Row("smooth_grad", f"{cubes}, until=0.2", k,
            drawn(CUBES, "smooth_grad", 0, until=0.2, samples=9000, **NOISE), slope_of_cubes),
        Row("smooth_grad_squared", f"{cubes}, until=0.3", k,
            drawn(CUBES, "smooth_grad_squared", 0, until=0.3, samples=9000, **NOISE), square_of_cubes),
        Row("gradient_shap", f"{ten}, four references, until=0.05", k,
            drawn(net, "gradient_shap", 1, baselines=REFERENCES, until=0.05, samples=9000),
            many(net, "gradient_shap", 1, baselines=REFERENCES, samples=2**14)),
        Row("sobol (map)", f"{ten}, until=0.3", k, drawn(net, "sobol", 1, until=0.3, draws=9000), total),
        Row("leave_one_out", "200 tokens, until=0.5", k,
            drawn(LONG, "leave_one_out", 1, until=0.5, draws=199), many(LONG, "leave_one_out", 1, draws=199)),
        Row("permutation", "12 samples of 10 columns, until=0.3", k,
            drawn((NET, PEOPLE), "permutation", 1, until=0.3, draws=2000), by_others),
    ]  # fmt: skip
    return found


def measure(only: list[str], path: Path = STORED) -> None:
    """Run what is missing, `AT_ONCE` seeds at a time, and store each."""
    keys = {row.key for row in rows()}
    stored = dict(np.load(path)) if path.exists() else {}
    found = {name: value for name, value in stored.items() if name.rpartition("/")[0] in keys}
    warnings.simplefilter("ignore")
    for row in rows():
        if only and not named(row.method, only):
            continue
        runs = found.get(f"{row.key}/runs")
        while runs is None or len(runs) < REPEATS:
            start = 0 if runs is None else len(runs)
            made = [row.run(seed) for seed in range(start, start + AT_ONCE)]
            new = np.stack([[some(part) for part in one[:3]] for one in made]).astype(np.float32)
            counts = np.array([one[3] for one in made])
            runs = new if runs is None else np.concatenate([runs, new])
            found[f"{row.key}/draws"] = np.concatenate([found.get(f"{row.key}/draws", counts[:0]), counts])
            found[f"{row.key}/runs"] = runs
            np.savez_compressed(path, **found)
            print(row.key, len(runs), file=sys.stderr, flush=True)
        if row.truth is not None and f"{row.key}/truth" not in found:
            found[f"{row.key}/truth"] = some(row.truth())
            np.savez_compressed(path, **found)


def named(method: str, names: list[str]) -> bool:
    """Whether a method is one of the names: `sobol (map)`, or `sobol` for both of that name."""
    return method in names or method.split()[0] in names


def some(values: torch.Tensor) -> np.ndarray:
    """At most `MOST` of some values, evenly spread, so that the file stays small."""
    flat = values.double().flatten().numpy()
    chosen: np.ndarray = flat[np.linspace(0, len(flat) - 1, min(MOST, len(flat))).round().astype(int)]
    return chosen


def forget(methods: list[str], path: Path = STORED) -> None:
    """Remove the runs of methods, whose rows were changed."""
    kept = {key: value for key, value in np.load(path).items() if not named(key.split(":")[0], methods)}
    np.savez_compressed(path, **kept)


def covered(runs: np.ndarray, truth: np.ndarray | None) -> tuple[float, float, float]:
    """Return the share of intervals that hold the value, its standard error over seeds, and error over true spread.

    Args:
        runs: value, low and high end of each seed, `(seeds, 3, values)`.
        truth: right values; None for the mean over seeds.
    """
    values, low, high = runs.astype(np.float64).transpose(1, 0, 2)
    right = values.mean(axis=0) if truth is None else truth
    near = 1e-6 * np.abs(right).max()  # numbers are stored in float32
    inside = ((low <= right + near) & (right - near <= high)).mean(axis=1)
    ratio = np.sqrt(((high - low) ** 2).mean()) / 2 / 1.645 / np.sqrt(values.var(axis=0, ddof=1).mean())
    return float(inside.mean()), float(inside.std(ddof=1) / len(runs) ** 0.5), float(ratio)


def report(path: Path = STORED) -> str:
    """The table, in Markdown."""
    found = np.load(path)
    lines = [HEAD]
    for row in rows():
        share, error, ratio = covered(found[f"{row.key}/runs"], found[f"{row.key}/truth"] if row.truth else None)
        draws = found[f"{row.key}/draws"]
        said = f"{draws.mean():.0f} ({draws.min()} to {draws.max()})" if "until" in row.task else ""
        held = f"{100 * share:.0f} ± {100 * error:.0f} %"
        lines.append(f"| `{row.method}` | {row.task} | {row.what} | {held} | {ratio:.2f} | {said} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2:])
    elif sys.argv[1:2] == ["forget"] and sys.argv[2:]:
        forget(sys.argv[2:])
    elif sys.argv[1:] == ["report"]:
        print(report(), end="")
    else:
        sys.exit(__doc__)
