"""How alike the layers of one model, or of two, see a data set."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn

from layerlens.analyzers.common.features.feature_batches import Source, distinct, moved
from layerlens.analyzers.common.features.layer_features import FeatureReader
from layerlens.errors import OptionError, check_count, choose
from layerlens.inputs.batches import Samples
from layerlens.inputs.inputs import Forward, Inputs, as_inputs
from layerlens.model.layers import Selection
from layerlens.results import Matrix

from .gram_matrices import GramReader, Grams, Side, of_rows, of_whole, side_by_side
from .labels import explained, warn_of
from .similarity_measures import Measure, Sums, biased, distances, nearest, unbiased

QUANTITIES = {"cka": "CKA", "rsa": "correlation of distances", "neighbors": "shared nearest neighbors"}


def similarity(
    model: nn.Module,
    data: Samples,
    layers: Selection = None,
    *,
    other: nn.Module | None = None,
    other_layers: Selection = None,
    other_data: Any = None,
    measure: Measure = "cka",
    debiased: bool = True,
    pool: Literal["flatten", "mean", "last"] | Callable[[torch.Tensor], torch.Tensor] = "flatten",
    neighbors: int = 10,
    permutations: int = 20,
    batch_size: int = 64,
    batched: bool | None = None,
    read: Callable[[Any], Inputs] = as_inputs,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
    other_forward: Forward | None = None,
) -> Matrix:
    r"""How alike the layers of a model, or of two models, see a data set: one number for each pair of layers.

    Each layer is a table with a row per sample, and the tables are compared by how they place the samples to each
    other, so that layers of different widths, and of different models, can be compared.

    - `"cka"`: debiased linear CKA, HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), K = X X', L = Y Y' (Kornblith et al.
      2019), with the unbiased HSIC of Song et al. 2012, eq. 5. Over minibatches the HSICs are averaged and then divided
      (Nguyen et al. 2021, eq. 2 and 3), which has the expectation of the whole set. 1 for tables that are equal up to
      rotation and scale, 0 on average for independent ones; a single value may lie a little below 0.
    - `"rsa"`: the correlation of the Euclidean distances of all pairs of samples (Kriegeskorte et al. 2008).
    - `"neighbors"`: the share of each sample's nearest samples that the layers have in common (Huh et al. 2024).

    CCA and its kin (SVCCA, PWCCA) are not offered: with no more samples than features they are near 1 for anything.

    Sums are in float64. A layer that is read whole is reduced to its samples' inner products inside of the run, so
    that memory is that of one minibatch. Cost: F for each sample (2 F with `other`), two runs of the first batch to
    learn the layers' axes, and sums in n^2 L^2 for n samples in a minibatch and L layers.

    Args:
        model: any module; it is run in eval mode.
        data: samples, see `layerlens.inputs.batches`.
        layers: which layers, see `Selection`; None for every distinct activation (of layers that hand on the same
            tensor, the first).
        other: a second model, whose layers become the columns; None compares the model with itself.
        other_layers: of that model.
        other_data: the same samples in the same order, as the second model takes them; None gives both the same.
        measure: see above.
        debiased: whether CKA uses the unbiased HSIC. The biased one is about d / (n + d) for independent tables of n
            samples and d features: .67 for d = 2 n, .89 for d = 8 n.
        pool: how a layer becomes a row: `"flatten"` takes all its numbers, `"mean"` each unit's mean over places,
            `"last"` its last place, or a function from `(batch, units, *places)` to `(batch, features)`. Samples of
            different shapes need one that does not depend on the number of places.
        neighbors: how many, for that measure.
        permutations: how often the samples are put in random order for the null; 0 for none.
        batch_size: samples in a minibatch. Fewer than 4 at the end join the minibatch before.
        batched: whether the items of an iterable are batches; None: those of a DataLoader are.
        read: makes model inputs of a batch, or of one text.
        seed: of permutations and groups, and for models that draw numbers.
        progress: whether to show a bar; None shows it in a terminal.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.
        other_forward: the same for the second model.

    Returns:
        A `Matrix`, layer x layer, with the standard error by a jackknife over groups of samples, and the mean over
        permuted rows as the null. Its checks are `"null 95 %"`, what 95 % of the permutations stay below, and
        `"samples"` and `"minibatches"`; `settings["left_out"]` says which layers have no row, and why.

    Raises:
        InputError: when there are fewer than 4 samples, or the two models do not get the same ones.
        LayerNotFound: when the selection matches no layer.
        OptionError: when an option is out of range or does not fit.

    Warns:
        UserWarning: for fewer than 64 samples, for the biased HSIC with few samples, for layers that are constant, and
            for layers left out.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> found = similarity(net, torch.randn(100, 4))
        >>> found.rows, round(found.at("1", "1"), 6), bool(found.at("0", "1") > 0.9)
        (('0', '1', '2'), 1.0, True)
    """
    choose("measure", measure, QUANTITIES)
    check_count("batch_size", batch_size)
    check_count("neighbors", neighbors)
    if isinstance(permutations, bool) or not isinstance(permutations, int) or permutations < 0:
        raise OptionError(f"permutations must be a whole number of at least 0, got {permutations!r}.")
    if not debiased and measure != "cka":
        raise OptionError(f"debiased=False belongs to measure 'cka'; {measure!r} has no such choice.")
    if other is None and not (other_layers is None and other_data is None and other_forward is None):
        raise OptionError("other_layers, other_data and other_forward belong to a second model: give other=.")

    def stream(what: Any, of: nn.Module, shown: bool | None) -> Iterator[Inputs]:
        source = Source(what, batch_size, batched, read, shown, "comparing layers")
        return (batch.inputs for batch in source.batches(of))

    first = stream(data, model, progress)
    pairs: Iterator[tuple[Inputs, ...]]
    if other is None:
        pairs = ((inputs,) for inputs in first)
    elif other_data is None:
        pairs = ((inputs, moved(inputs, other)) for inputs in first)
    else:
        pairs = side_by_side(first, stream(other_data, other, False))
    start = next(pairs)
    models = [(model, layers, forward), (other, other_layers, other_forward)][: len(start)]
    sides = [
        Side(_reader(one, chosen, run, pool, inputs), seed)
        for (one, chosen, run), inputs in zip(models, start, strict=True)
        if one is not None
    ]
    pairs = itertools.chain([start], pairs)
    vectors = {"cka": unbiased if debiased else biased, "rsa": distances, "neighbors": nearest(neighbors)}[measure]
    sums = Sums(vectors, permutations, torch.Generator().manual_seed(seed))
    for grams in of_whole(pairs, sides) if pool == "flatten" else of_rows(pairs, sides, batch_size):
        sums.add(*(_stacked(side, part) for side, part in zip(sides, grams, strict=True)), *[None] * (other is None))
    names = [side.finish() for side in sides]
    chosen = [
        torch.tensor([(side.names or []).index(name) for name in kept]) for side, kept in zip(sides, names, strict=True)
    ]
    rows, columns = chosen[0], chosen[-1]

    def cut(matrix: torch.Tensor) -> torch.Tensor:
        return matrix[..., rows, :][..., columns]

    values, error, null = cut(sums.ratio()), sums.error(), sums.null()
    left_out = dict(sides[0].left_out)
    if other is not None:
        left_out |= {f"other {name}": why for name, why in sides[1].left_out.items()}
    widths = [side.widths for side in sides]
    warn_of(sums, values, (names[0], names[-1]), widths, debiased, left_out, layers is not None)
    batches = f"{sums.samples} samples in {sums.batches} minibatch{'es' * (sums.batches > 1)}"
    kind = {"cka": f"{'debiased' if debiased else 'biased'} linear CKA"}.get(measure, QUANTITIES[measure])
    return Matrix(
        quantity=QUANTITIES[measure],
        rows=tuple(names[0]),
        columns=tuple(names[-1]),
        values=values,
        axes=("layer", "layer" if other is None else "layer of the other model"),
        units="1",
        signed=False,
        method=f"{kind}, {batches}",
        settings={
            "measure": measure,
            "debiased": debiased,
            "pool": pool if isinstance(pool, str) else getattr(pool, "__name__", type(pool).__name__),
            "neighbors": neighbors if measure == "neighbors" else None,
            "permutations": permutations,
            "batch_size": batch_size,
            "seed": seed,
            "left_out": left_out,
        },
        error=None if error is None else cut(error),
        null=None if null is None else cut(null).mean(dim=0),
        checks={
            **({} if null is None else {"null 95 %": cut(null).quantile(0.95, dim=0)}),
            "samples": torch.tensor(sums.samples),
            "minibatches": torch.tensor(sums.batches),
        },
        explanation=explained(measure, other is not None),
    )


def _reader(model: nn.Module, layers: Selection, forward: Forward | None, pool: Any, inputs: Inputs) -> FeatureReader:
    selection = distinct(model, inputs, forward) if layers is None else layers
    kind = GramReader if pool == "flatten" else FeatureReader
    return kind(model, selection, pool=pool, forward=forward)


def _stacked(side: Side, grams: Grams) -> torch.Tensor:
    """`(layers, n, n)` in the order of the first minibatch; zeros for a layer that was not read."""
    n = next(len(one) for one in grams.values())
    empty = torch.zeros(n, n, dtype=torch.float64)
    return torch.stack([grams.get(name, empty) for name in side.names or ()])
