"""How similarly the layers of one model, or of two, represent a data set."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from layerlens.analyzers.common.features.feature_batches import warn_unread
from layerlens.analyzers.common.features.layer_features import FeatureReader, Pool, pool_name
from layerlens.analyzers.common.messages import listed
from layerlens.errors import OptionError, check_count, choose, warn
from layerlens.inputs.batches import Data, Read, Samples
from layerlens.inputs.inputs import Forward, Inputs, as_inputs
from layerlens.model.layers import Selection
from layerlens.model.placement import home
from layerlens.results import Matrix
from layerlens.signatures import public

from .gram_matrices import GramReader, Grams, Side, row_minibatches, side_by_side, whole_minibatches
from .similarity_measures import Measure, Sums, biased, distances, nearest, unbiased

QUANTITIES = {"cka": "CKA", "rsa": "correlation of distances", "neighbors": "shared nearest neighbors"}
MEANINGS = {
    "cka": "Each value says how alike two layers place the samples to each other, up to rotation and scale: 1 is "
    "the same arrangement, 0 is what unrelated layers have on average.",
    "rsa": "Each value is the correlation, between two layers, of the distances of all pairs of samples.",
    "neighbors": "Each value is the share of a sample's nearest samples in one layer that are nearest in the other "
    "as well; unrelated layers share the null.",
}

ENOUGH = 64
"""Samples below which similarities are too uncertain to be read without their errors."""


@public
def similarity(
    model: nn.Module,
    data: Samples,
    layers: Selection = None,
    *,
    other: nn.Module | None = None,
    other_layers: Selection = None,
    other_data: Samples | None = None,
    measure: Measure = "cka",
    debiased: bool = True,
    pool: Pool = "flatten",
    neighbors: int = 10,
    permutations: int = 20,
    batch_size: int = 64,
    batched: bool | None = None,
    read: Read = as_inputs,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
    other_forward: Forward | None = None,
) -> Matrix:
    r"""Measure how similarly the layers of a model, or of two models, represent a data set, for each pair of layers.

    Each layer is a table with a row per sample, and the tables are compared by how they place the samples to each
    other, so that layers of different widths, and of different models, can be compared.

    - `"cka"`: debiased linear CKA, HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), K = X X', L = Y Y' (Kornblith et al.
      2019), with the unbiased HSIC of Song et al. 2012, eq. 5. Over minibatches the HSICs are averaged and then divided
      (Nguyen et al. 2021, eq. 2 and 3), which has the expectation of the whole set. 1 for tables that are equal up to
      rotation and scale, 0 on average for independent ones; a single value may lie a little below 0.
    - `"rsa"`: the correlation of the Euclidean distances of all pairs of samples (Kriegeskorte et al. 2008).
    - `"neighbors"`: the share of each sample's nearest samples that the layers have in common (Huh et al. 2024).

    CCA and its variants (SVCCA, PWCCA) are not offered: with no more samples than features they are near 1 for
    anything.

    Sums are in float64. A layer that is read whole is reduced to its samples' inner products during the run, so that
    memory is one minibatch. Cost: F for each sample (2 F with `other`), two runs of the first batch to learn the
    layers' axes, and sums in n^2 L^2 for n samples in a minibatch and L layers.

    Args:
        layers: which layers, see `Selection`; None for every layer but those that return another's output.
        other: a second model, whose layers become the columns; None compares the model with itself.
        other_layers: layers of that model.
        other_data: the same samples in the same order, as the second model takes them; None gives both the same.
        measure: see above.
        debiased: whether CKA uses the unbiased HSIC. The biased one is about d / (n + d) for independent tables of n
            samples and d features: .67 for d = 2 n, .89 for d = 8 n.
        pool: ... Samples of different shapes need one that does not depend on the number of places.
        neighbors: number of nearest samples, for that measure.
        permutations: ... 0 for none.
        batch_size: samples in a minibatch. Fewer than 4 at the end join the minibatch before.
        other_forward: `forward` of the second model.

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
    check_count("permutations", permutations, least=0)
    if not debiased and measure != "cka":
        raise OptionError(f"debiased=False belongs to measure 'cka'; {measure!r} has no such choice.")
    if other is None and not (other_layers is None and other_data is None and other_forward is None):
        raise OptionError("other_layers, other_data and other_forward belong to a second model: give other=.")
    data = Data.of(data, batch_size=batch_size, batched=batched, read=read, progress=progress)
    sides = [Side(_reader(model, layers, forward, pool), seed)]
    pairs: Iterator[tuple[Inputs, ...]] = ((batch.inputs,) for batch in data.batches(model, "similarity"))
    if other is not None:
        sides.append(Side(_reader(other, other_layers, other_forward, pool), seed))
        if other_data is not None:
            other_data = Data.of(other_data, batch_size=data.batch_size, batched=batched, read=read, progress=False)
        pairs = _paired(pairs, other, other_data)
    vectors = {"cka": unbiased if debiased else biased, "rsa": distances, "neighbors": nearest(neighbors)}[measure]
    sums = Sums(vectors, permutations, torch.Generator().manual_seed(seed))
    size = data.batch_size or batch_size
    for grams in whole_minibatches(pairs, sides) if pool == "flatten" else row_minibatches(pairs, sides, size):
        sums.add(*(_stacked(side, part) for side, part in zip(sides, grams, strict=True)), *[None] * (other is None))
    names = [side.finish() for side in sides]
    kept = [
        torch.tensor([(side.names or []).index(name) for name in own]) for side, own in zip(sides, names, strict=True)
    ]

    def cut(matrix: torch.Tensor) -> torch.Tensor:
        return matrix[..., kept[0], :][..., kept[-1]]

    values, error, null = cut(sums.ratio()), sums.error(), sums.null()
    left_out = dict(sides[0].left_out)
    if other is not None:
        left_out |= {f"other {name}": why for name, why in sides[1].left_out.items()}
    _warn(sums, values, (names[0], names[-1]), sides, debiased, left_out, layers is not None)
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
            "pool": pool_name(pool),
            "neighbors": neighbors if measure == "neighbors" else None,
            "permutations": permutations,
            "batch_size": size,
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
        explanation=(
            MEANINGS[measure],
            "Alike does not mean doing the same or being as good: a few directions of large spread set the value, and "
            "first layers are alike even with an untrained twin"
            + ("; compare with one by other=." if other is None else ", so compare with that too."),
        ),
    )


def _paired(pairs: Iterator[tuple[Inputs, ...]], other: nn.Module, data: Data | None) -> Iterator[tuple[Inputs, ...]]:
    """Add the inputs of the other model, the same ones where it has no data."""
    if data is not None:
        return side_by_side(pairs, data.batches(other, "similarity"))
    device = home(other)
    return ((inputs, inputs.to(device)) for (inputs,) in pairs)


def _reader(model: nn.Module, layers: Selection, forward: Forward | None, pool: Pool) -> FeatureReader:
    kind = GramReader if pool == "flatten" else FeatureReader
    return kind(model, layers, pool=pool, forward=forward, distinct=True)


def _stacked(side: Side, grams: Grams) -> torch.Tensor:
    """Return `(layers, n, n)` in the order of the first minibatch; zeros for a layer that was not read."""
    n = next(len(one) for one in grams.values())
    empty = torch.zeros(n, n, dtype=torch.float64)
    return torch.stack([grams.get(name, empty) for name in side.names or ()])


def _warn(
    sums: Sums,
    values: torch.Tensor,
    names: tuple[list[str], list[str]],
    sides: list[Side],
    debiased: bool,
    left_out: dict[str, str],
    explicit: bool,
) -> None:
    """Warn of what would mislead."""
    warn_unread("similarity", left_out, explicit)
    n = sums.samples
    if n < ENOUGH:
        warn(f"similarity: {n} samples are few; read the errors and the null, or give 64 or more.")
    if not debiased:
        size = n // sums.batches
        wide = [name for side in sides for name, width in side.widths.items() if 2 * width >= size]
        if wide:
            warn(
                f"similarity: with {size} samples in a minibatch the biased CKA of {listed(wide)} is high for anything "
                "(see the null); use debiased=True.",
            )
    constant = [name for name, row in zip(names[0], values.isnan().all(dim=1).tolist(), strict=True) if row]
    constant += [name for name, column in zip(names[1], values.isnan().all(dim=0).tolist(), strict=True) if column]
    if constant:
        warn(
            f"similarity: {listed(list(dict.fromkeys(constant)))} does not distinguish these samples (it is constant, "
            "or too few samples differ), so it is like nothing: NaN.",
        )
