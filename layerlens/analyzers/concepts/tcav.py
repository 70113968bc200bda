"""TCAV: whether a concept that examples show pushes the score, layer by layer, compared with random concepts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.features.batch_targets import check_length, of_batch
from layerlens.analyzers.common.features.feature_batches import Table, gather
from layerlens.analyzers.common.features.layer_features import FeatureReader
from layerlens.analyzers.common.scorer import gradients, scoring
from layerlens.axes.followed import followed
from layerlens.errors import InputError, OptionError, check_count, check_seed, need
from layerlens.inputs.batches import Data, Read, Samples
from layerlens.inputs.inputs import Forward, as_inputs
from layerlens.model.layers import Layers, Selection
from layerlens.results import LayerProfile
from layerlens.signatures import public
from layerlens.targets.target import Spec, as_target

from .unit_regions import unit_maps


@public
def tcav(
    model: nn.Module,
    data: Samples,
    concepts: Mapping[str, Samples],
    layers: Selection,
    *,
    random: Samples,
    target: Spec = None,
    draws: int = 5,
    permutations: int = 39,
    penalty: float = 1.0,
    max_samples: int = 500,
    batch_size: int = 16,
    batched: bool | None = None,
    read: Read = as_inputs,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> LayerProfile:
    """Test whether concepts, each given by examples, push the score up or down at each layer.

    A concept's vector v is the normal of a logistic regression that separates its examples from random ones by the
    units of a layer (means over places). The value is the share of the samples of `data` whose score rises along v:
    sum over places of grad S . v > 0 (Kim et al. 2018, eq. 2). It is averaged over `draws` sets of random examples.

    Almost any direction has a share far from one half, so random examples are taken as concepts too: p is the share of
    `permutations` such concepts that are at least as far from one half. Where a layer is nearly linear in the score,
    every share is 0 or 1 and that p says nothing; `"p of slope"` compares the mean of grad S . v / |v| instead.

    Memory holds one batch, and `max_samples` rows of each set of examples; nothing is written to disk, where
    `captum.concept` keeps activations and vectors as pickles, and takes those of an earlier run of the same names.
    Cost: one forward pass for each example, and a gradient for each sample of `data`. It needs
    `pip install 'layerlens-torch[sklearn]'`.

    Args:
        data: samples whose scores are explained, such as those of one class.
        concepts: name of each concept -> its examples.
        layers: layers, see `Selection`.
        random: examples that show nothing in particular; at least twice as many as of each concept are used best.
        target: ... `"label"` is the label of each sample.
        draws: number of sets of random examples that a concept is separated from.
        permutations: number of random concepts.
        max_samples: number of examples of a concept that are kept, drawn at random; of random ones twice as many.

    Returns:
        A `LayerProfile` with a series per concept; `null` is the mean of random concepts of the same size. The checks
        hold `"p CONCEPT"` and `"p of slope CONCEPT"`, not corrected for the number of layers and concepts, and
        `"separated CONCEPT"`, the share of its examples and random ones on their side. `vectors` holds the concept
        vectors of each layer, `(concepts, draws, units)`.

    Raises:
        InputError: when a set holds too few examples, or data cannot be read.
        OptionError: when there are no concepts, or an option is out of range.
        MissingPackage: when scikit-learn is not installed.

    Source: Kim et al. 2018, "Interpretability beyond feature attribution: quantitative testing with concept activation
    vectors (TCAV)".

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(60, 4)
        >>> shown = x[:15] + torch.tensor([3.0, 0.0, 0.0, 0.0])
        >>> tcav(net, x, {"first": shown}, "1", random=x, target=0).layers
        ('1',)
    """
    for name, value in (("draws", draws), ("permutations", permutations), ("max_samples", max_samples)):
        check_count(name, value)
    check_seed(seed)
    check_concepts(concepts, "tcav")
    paths = list(Layers(model).select(layers))
    options: dict[str, Any] = {"batch_size": batch_size, "batched": batched, "read": read, "progress": progress}

    def rows_of(samples: Samples, what: str, most: int) -> dict[str, torch.Tensor]:
        return unit_means(model, paths, Data.of(samples, **options), most, seed, f"tcav: {what}", forward).layers

    shown = {name: rows_of(samples, name, max_samples) for name, samples in concepts.items()}
    others = rows_of(random, "random", 2 * max_samples)
    count = len(others[paths[0]])
    sizes = {name: min(len(rows[paths[0]]), count // 2) for name, rows in shown.items()}
    if min(sizes.values()) < 2:
        raise InputError(f"tcav needs 2 examples of each concept and 4 random ones; got {sizes} and {count}.")
    vectors: dict[str, torch.Tensor] = {}
    separated = {name: torch.zeros(len(paths), dtype=torch.float64) for name in shown}
    for row, path in enumerate(paths):
        generator = torch.Generator().manual_seed(seed)
        columns: list[torch.Tensor] = []
        for name, size in sizes.items():
            for number in range(1 + permutations):
                order = torch.randperm(count, generator=generator)
                positive = shown[name][path] if not number else others[path][order[:size]]
                rest = order if not number else order[size:]
                for _ in range(draws):
                    negative = others[path][rest[torch.randperm(len(rest), generator=generator)[:size]]]
                    vector, right = concept_vector(positive, negative, penalty)
                    columns.append(vector)
                    separated[name][row] += 0.0 if number else right / draws
        vectors[path] = torch.stack(columns, dim=1)  # (units, concepts x (1 + permutations) x draws)
    measured = _shares(model, Data.of(data, **options), target, vectors, forward)
    by_concept, slopes = (one.reshape(len(paths), len(shown), 1 + permutations, draws) for one in measured)
    means = by_concept.mean(dim=3)
    values, null = means[:, :, 0], means[:, :, 1:]
    checks: dict[str, torch.Tensor] = {}
    for label, sizes_of in (("p", means - 0.5), ("p of slope", slopes.mean(dim=3))):
        far = sizes_of[:, :, 1:].abs() >= sizes_of[:, :, :1].abs() - 1e-12
        p = (1 + far.sum(dim=2)).double() / (1 + permutations)
        checks |= {f"{label} {name}": p[:, number] for number, name in enumerate(shown)}
    checks |= {f"separated {name}": one for name, one in separated.items()}
    return LayerProfile(
        "TCAV score",
        tuple(paths),
        values,
        "share of samples",
        False,
        f"TCAV, {draws} draws",
        {"draws": draws, "permutations": permutations, "penalty": penalty, "examples": sizes, "seed": seed},
        series=tuple(shown),
        error=by_concept[:, :, 0].std(dim=2) / draws**0.5 if draws > 1 else None,
        null=null.mean(dim=2),
        checks=checks,
        explanation=(
            "The share of samples whose score rises along the concept's direction; p compares it with random concepts.",
            "A direction that separates examples may stand for anything else that they share.",
        ),
        null_name="random concepts",
        vectors={path: _measured(columns, len(shown), draws) for path, columns in vectors.items()},
    )


def _measured(columns: torch.Tensor, concepts: int, draws: int) -> torch.Tensor:
    """Return the vectors of the concepts themselves, `(concepts, draws, units)`, without the random ones."""
    return columns.T.reshape(concepts, -1, draws, len(columns))[:, 0].clone()


def check_concepts(concepts: object, what: str) -> None:
    """Check that concepts are examples by name, and that scikit-learn is installed.

    Raises:
        MissingPackage: when scikit-learn is not installed.
        OptionError: when there are no concepts.
    """
    if not isinstance(concepts, Mapping) or not concepts:
        raise OptionError("concepts= is a dict of the examples of each concept: {'stripes': images}.")
    need("sklearn", what, "sklearn")


def unit_means(
    model: nn.Module, paths: list[str], data: Data, most: int, seed: int, what: str, forward: Forward | None
) -> Table:
    """Return the means over places of the units of some layers, a row for each of at most `most` samples.

    Raises:
        InputError: when a layer has no units, or runs more than once.
    """
    found = gather(FeatureReader(model, paths, pool="mean", forward=forward), data, most, seed, what)
    if lacking := [path for path in paths if path not in found.layers]:
        why = "; ".join(f"{path}: {reason}" for path, reason in found.left_out.items())
        raise InputError(f"{what}: layers {lacking} have no units of one call ({why}); select other layers.")
    return found


def concept_vector(positive: torch.Tensor, negative: torch.Tensor, penalty: float) -> tuple[torch.Tensor, float]:
    """Return the direction from random examples to those of a concept, and the share on the right side."""
    linear = need("sklearn.linear_model", "tcav", "sklearn")
    rows = torch.cat([positive, negative]).double()
    scale = rows.std(dim=0)
    scale = torch.where(scale > 0, scale, 1.0)
    given = ((rows - rows.mean(dim=0)) / scale).numpy()
    truth = [1] * len(positive) + [0] * len(negative)
    fitted = linear.LogisticRegression(C=penalty, max_iter=500).fit(given, truth)
    return torch.from_numpy(fitted.coef_[0]) / scale, float(fitted.score(given, truth))


def _shares(
    model: nn.Module, data: Data, target: Spec, vectors: Mapping[str, torch.Tensor], forward: Forward | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the share of samples whose score rises along each vector, half for no change, and the mean slope.

    Both are `(layers, vectors)`, the slope for vectors of length 1.
    """
    aim = None if isinstance(target, str) and target == "label" else as_target(target)
    rising = torch.zeros(len(vectors), next(iter(vectors.values())).shape[1], dtype=torch.float64)
    steep, seen = torch.zeros_like(rising), 0
    for batch in data.batches(model, "tcav"):
        own = of_batch(aim, batch)
        with scoring(model, batch.inputs, own, where=list(vectors), forward=forward) as scorer:
            scorer.through = True  # so that each gradient is what it is without the other layers
            _, found = gradients(scorer, scorer.start())
        known = followed(model, batch.inputs, forward)
        for row, (leaf, columns) in enumerate(zip(scorer.leaves.values(), vectors.values(), strict=True)):
            assert leaf.place is not None
            gradient = leaf.place.as_returned(found[leaf.place.name].detach())
            maps = unit_maps(known.site(leaf.place.layer, leaf.place.call), gradient, batch.inputs.batch)
            slopes = maps.double().reshape(*maps.shape[:2], -1).sum(dim=2).cpu() @ columns
            rising[row] += (slopes > 0).double().sum(dim=0) + (slopes == 0).double().sum(dim=0) / 2
            steep[row] += (slopes / columns.norm(dim=0).clamp_min(1e-300)).sum(dim=0)
        seen += batch.inputs.batch
    check_length(aim, seen)
    return rising / seen, steep / seen
