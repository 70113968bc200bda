"""How far each layer is from a linear map of its input, and how little it changes it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from layerlens.analyzers.common.features.feature_batches import warn_unread
from layerlens.analyzers.common.messages import first_reasons, listed
from layerlens.errors import InputError, OptionError, check_count, choose, warn
from layerlens.inputs.batches import Data, Read, Samples
from layerlens.inputs.inputs import Forward, as_inputs
from layerlens.model.layers import Layers, Selection
from layerlens.progress import track
from layerlens.results import LayerProfile
from layerlens.signatures import public

from .input_output_pairs import PairReader, Pairs, RowOptions
from .residual import residual_calls

PENALTIES = torch.cat([10.0 ** torch.arange(-14, 3, dtype=torch.float64), torch.tensor([torch.inf]).double()])
"""Penalties of the ridge, as shares of the largest eigenvalue of X'X; the last one predicts the mean."""

FOLDS = 5


@public(renamed={"places": "max_places", "most": "max_rows", "widest": "max_features"})
def nonlinearity(
    model: nn.Module,
    data: Samples,
    layers: Selection = None,
    *,
    rows: Literal["auto", "sample"] = "auto",
    window: int = 3,
    residual: bool | None = None,
    redundant: float = 0.05,
    max_places: int = 16,
    max_rows: int = 1000,
    max_features: int = 1024,
    batch_size: int = 16,
    batched: bool | None = None,
    read: Read = as_inputs,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> LayerProfile:
    r"""Measure how much of each layer's output is not a linear map of its input, and find blocks that change little.

    - nonlinearity: 1 - R^2 of the best linear map (with an offset) from a layer's first floating-point input x to its
      output y, on samples held out: 0 for a linear layer, 1 where x says nothing linearly. The map is a ridge
      regression whose penalty is chosen on the other folds. Where a block returns x + f(x), y is f(x): the stream
      alone would make any block look linear (Razzhigaev et al. 2024). Such blocks are found in autograd's graph.
    - block influence: 1 - cos(x, y), mean over samples and places, of layers with children whose input and output have
      one shape (Men et al. 2024). Blocks below `redundant` change next to nothing, and are named.

    A row is a place of the output (token, step, pixel) with what lies under it in the input: itself, the kernel of a
    convolution or pooling, and for blocks of convolutions a window. What reaches farther, as attention does, counts as
    nonlinear: no linear map of the place explains it. Where places do not fit each other, or with `rows="sample"`, a
    row is a whole sample.

    With few rows for many features even a linear layer looks nonlinear. The null is what a linear layer would get: a
    random linear map of the same rows, fitted in the same way. Read a value by its distance to the null.

    The data is read once. Cost: F for each sample; two more runs of the first batch and a run with a graph of one
    sample; and for each layer five eigenvalue problems in `min(max_rows, features)`.

    Args:
        rows: what a row is, see above.
        window: places of the input, in each direction, given to blocks at most; odd.
        residual: whether the input is subtracted from the output; None where the graph says that it was added.
        redundant: block influence below which a block is named as redundant.
        max_places: places of a sample used at most, chosen at random.
        max_rows: rows of each layer kept at most, drawn at random.
        max_features: features of a row above which random sums of them are used instead.

    Returns:
        A `LayerProfile` of the nonlinearity, with the standard error over the five folds. Its checks are
        `"block influence"` and `"block influence error"`, over samples, `(layers,)`, NaN for layers that are not such
        blocks, and `"features"` of a row. `settings` names the `"redundant"` blocks, the `"residual"` calls, and what
        a row is in each layer, `"rows"`.

    Raises:
        InputError: when there are fewer than two samples, or no layer has pairs.
        LayerNotFound: when the selection matches no layer.
        OptionError: when an option is out of range.

    Warns:
        UserWarning: when a linear layer of the same size would look nonlinear (null above .05), when an output is
            constant, and for layers left out.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> found = nonlinearity(net, torch.randn(200, 3))
        >>> [round(value, 2) for value in found.values.tolist()]
        [0.0, ...]
    """
    choose("rows", rows, ("auto", "sample"))
    counts = {"window": window, "max_places": max_places, "max_rows": max_rows, "max_features": max_features}
    for name, count in counts.items():
        check_count(name, count)
    if window % 2 == 0:
        raise OptionError(f"window must be odd, so that it has a middle, got {window}.")
    data = Data.of(data, batch_size=batch_size, batched=batched, read=read, progress=progress)
    selected = Layers(model).select(layers, tensors=True)
    reader = PairReader(model, selected, forward, RowOptions(rows == "sample", seed=seed, **counts), bool(residual))
    samples = 0
    for batch in data.batches(model, "nonlinearity"):
        if not samples and residual is None:
            reader.residual = residual_calls(model, batch.inputs, forward, seed)
        reader.read(batch.inputs, seed + samples)
        samples += batch.inputs.batch
    if samples < 2:
        raise InputError("nonlinearity: one sample leaves none to hold out; give two or more.")
    left_out = reader.finish()
    if not reader.pairs:
        raise InputError(f"no layer has an input and an output. {first_reasons(left_out)}")
    fits = [_fit(pairs, seed) for pairs in track(reader.pairs.values(), "fitting lines", enabled=progress)]
    values, error, null, influence, influence_error = torch.tensor(fits, dtype=torch.float64).unbind(dim=1)
    names = tuple(reader.pairs)
    slight = [name for name, fit in zip(names, fits, strict=True) if fit[3] < redundant]
    _warn(names, values, null, left_out, layers is not None)
    ending = f"; next to nothing is changed by {', '.join(slight[:3])}." if slight else "."
    return LayerProfile(
        quantity="nonlinearity",
        layers=names,
        values=values,
        units="1",
        signed=False,
        method=f"ridge regression, held out, {samples} samples",
        settings={
            **counts,
            "seed": seed,
            "residual": [name for name in names if reader.subtracts_input(name)],
            "redundant": slight,
            "rows": {name: pairs.kind for name, pairs in reader.pairs.items()},
            "left_out": left_out,
        },
        error=error,
        null=null,
        checks={
            "block influence": influence,
            "block influence error": influence_error,
            "features": torch.tensor([pairs.features for pairs in reader.pairs.values()]),
        },
        explanation=(
            "Each value is the share of what a layer returns, or adds to its stream, that no linear map of its input "
            f"explains on samples held out{ending}",
            "A value at its null is what a linear layer gets with these rows, and what a layer takes from other "
            "places counts as nonlinear; a block that changes little may still matter to the output.",
        ),
    )


def _fit(pairs: Pairs, seed: int) -> tuple[float, float, float, float, float]:
    """Return nonlinearity, its error, its null, block influence and its error, of one layer."""
    x, y, twin, samples, _ = pairs.rows()
    own, chance = unexplained(x, [y, twin], split_samples(samples, seed))
    influence = torch.cat(pairs.influence) if pairs.influence else torch.full((2,), torch.nan, dtype=torch.float64)
    return float(own.mean()), _error(own), float(chance.mean()), float(influence.mean()), _error(influence)


def _error(parts: torch.Tensor) -> float:
    return float(parts.std()) / len(parts) ** 0.5 if len(parts) > 1 else float("nan")


def _warn(
    names: tuple[str, ...], values: torch.Tensor, null: torch.Tensor, left_out: dict[str, str], explicit: bool
) -> None:
    """Warn of what would mislead."""
    warn_unread("nonlinearity", left_out, explicit)
    if blurred := [name for name, floor in zip(names, null.tolist(), strict=True) if floor > 0.05]:
        worst = float(null.nan_to_num().max())
        warn(
            f"nonlinearity: too few rows for the features of {listed(blurred)}: a linear layer would get up to "
            f"{worst:.2f} (the null). Give more samples, or raise max_rows=.",
        )
    if constant := [name for name, value in zip(names, values.tolist(), strict=True) if value != value]:
        warn(f"nonlinearity: what {listed(constant)} adds is constant: NaN.")


def split_samples(samples: torch.Tensor, seed: int) -> torch.Tensor:
    """Draw the fold of each row; rows of one sample share one. At most `FOLDS`, at least two."""
    names, place = torch.unique(samples, return_inverse=True)
    count = min(FOLDS, len(names))
    fold = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)) % count
    return fold[place]


def unexplained(x: torch.Tensor, outputs: list[torch.Tensor], folds: torch.Tensor) -> list[torch.Tensor]:
    """Return 1 - R^2 of the best linear map with an offset on each fold held out, `(folds,)` for each output.

    A ridge regression on all other folds; its penalty is the one that is best on those, each held out in turn.

    Args:
        x: `(rows, features)`.
        outputs: each `(rows, numbers)`.
        folds: fold of each row.
    """
    count = int(folds.max()) + 1
    errors = torch.zeros(len(outputs), count, len(PENALTIES), dtype=torch.float64)
    totals = torch.zeros(len(outputs), count, dtype=torch.float64)
    for fold in range(count):
        train, test = folds != fold, folds == fold
        middle = x[train].mean(dim=0)
        known, new = x[train] - middle, x[test] - middle
        wide = known.shape[1] > len(known)
        values, vectors = torch.linalg.eigh(known @ known.T if wide else known.T @ known)
        values = values.clamp_min(0)
        top = values.amax().clamp_min(torch.finfo(values.dtype).tiny)
        # with K = X X' = U e U': prediction = new X' U (e + penalty)^-1 U' y, and the same by features
        basis = new @ (known.T @ vectors) if wide else new @ vectors
        for place, output in enumerate(outputs):
            mean = output[train].mean(dim=0)
            answers = output[train] - mean
            parts = vectors.T @ (answers if wide else known.T @ answers)
            truth = output[test] - mean
            totals[place, fold] = truth.square().sum()
            for k, penalty in enumerate(PENALTIES.tolist()):
                weight = torch.zeros_like(values) if penalty == float("inf") else 1 / (values + penalty * top)
                guess = (basis * weight) @ parts
                errors[place, fold, k] = (truth - guess).square().sum()
    found = []
    for place in range(len(outputs)):
        shares = torch.full((count,), torch.nan, dtype=torch.float64)
        for fold in range(count):
            others = errors[place, torch.arange(count) != fold].sum(dim=0)
            if float(totals[place, fold]):
                shares[fold] = errors[place, fold, int(others.argmin())] / totals[place, fold]
        found.append(shares)
    return found
