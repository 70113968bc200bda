"""How strongly concepts that examples show are present in groups of samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_shapes import one_match
from layerlens.errors import InputError, check_count, check_seed
from layerlens.inputs.batches import Data, Labels, Read, Samples, per_sample
from layerlens.inputs.inputs import Forward, as_inputs
from layerlens.model.layers import Selection
from layerlens.results import Matrix
from layerlens.signatures import public

from .tcav import check_concepts, concept_vector, unit_means


@public
def concept_activation(
    model: nn.Module,
    data: Samples,
    concepts: Mapping[str, Samples],
    layer: Selection,
    *,
    random: Samples,
    groups: Labels | None = None,
    penalty: float = 1.0,
    max_samples: int = 500,
    batch_size: int = 16,
    batched: bool | None = None,
    read: Read = as_inputs,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> Matrix:
    """Measure how strongly each concept, given by examples, is present in each group of samples at a layer.

    The vector v of a concept is that of `tcav`: the normal of a logistic regression that separates its examples from
    one half of the random ones. With activations a (means over places), the value is the mean of a . v over a group, in
    standard deviations of a . v over the other half, from their mean. It says what the layer holds, not what the score
    uses: for that, `tcav`.

    Samples that are also examples of a concept have larger values than others like them, since v was fitted to them.
    Cost: one forward pass for each sample and example. It needs `pip install 'layerlens-torch[sklearn]'`.

    Args:
        data: samples in which concepts are looked for.
        concepts: name of each concept -> its examples.
        layer: a selection that matches one layer.
        random: examples that show nothing in particular.
        groups: one name or number per sample of `data`; None takes its labels, or one group if it has none.
        max_samples: number of examples of each set that are kept, drawn at random.

    Returns:
        A `Matrix` (groups, concepts) with standard errors. The checks hold `"separated"`, the share of examples and
        random ones on their side, by concept.

    Raises:
        InputError: when a set holds too few examples, groups are not one per sample, or data cannot be read.
        OptionError: when there are no concepts, or an option is out of range.
        MissingPackage: when scikit-learn is not installed.

    Source: Kim et al. 2018, "Interpretability beyond feature attribution: quantitative testing with concept activation
    vectors (TCAV)".

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(60, 4)
        >>> shown = x[:15] + torch.tensor([3.0, 0.0, 0.0, 0.0])
        >>> found = concept_activation(net, x, {"first": shown}, "1", random=torch.randn(60, 4), groups=x[:, 0] > 0)
        >>> found.at("True", "first") > found.at("False", "first")
        True
    """
    check_count("max_samples", max_samples)
    check_seed(seed)
    check_concepts(concepts, "concept_activation")
    (path,) = one_match(model, layer, calls=False)
    options: dict[str, Any] = {"batch_size": batch_size, "batched": batched, "read": read, "progress": progress}

    def rows_of(samples: Samples, what: str, most: int) -> Any:
        what = f"concept_activation: {what}"
        return unit_means(model, [path], Data.of(samples, **options), most, seed, what, forward)

    shown = {name: rows_of(samples, name, max_samples).layers[path] for name, samples in concepts.items()}
    others = rows_of(random, "random", 2 * max_samples).layers[path].double()
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    fitted, held = others[order[::2]], others[order[1::2]]
    if len(held) < 2 or min(map(len, shown.values())) < 2:
        sizes = {name: len(rows) for name, rows in shown.items()}
        raise InputError(
            f"concept_activation needs 2 examples of each concept and 4 random ones; got {sizes} and {len(others)}."
        )
    pairs = [concept_vector(rows.double(), fitted, penalty) for rows in shown.values()]
    vectors = torch.stack([vector for vector, _ in pairs], dim=1)  # (units, concepts)
    known = held @ vectors
    spread = known.std(dim=0)
    table = rows_of(data, "data", 2**62)
    present = (table.layers[path].double() @ vectors - known.mean(dim=0)) / torch.where(spread > 0, spread, 1.0)
    given = table.labels if groups is None else groups
    names = ["all"] * table.count if given is None else [str(one) for one in per_sample("groups", given, table.count)]
    rows = tuple(dict.fromkeys(sorted(names)))
    of_group = [present[torch.tensor([name == row for name in names])] for row in rows]
    return Matrix(
        "presence of a concept",
        rows,
        tuple(shown),
        torch.stack([one.mean(dim=0) for one in of_group]),
        ("group", "concept"),
        "standard deviations of random examples",
        True,
        f"concept vectors at {path}",
        {
            "layer": path,
            "penalty": penalty,
            "samples": {row: len(one) for row, one in zip(rows, of_group, strict=True)},
            "examples": {name: len(one) for name, one in shown.items()},
            "random": len(others),
            "seed": seed,
        },
        error=torch.stack([one.std(dim=0, correction=len(one) > 1) / len(one) ** 0.5 for one in of_group]),
        checks={"separated": torch.tensor([right for _, right in pairs], dtype=torch.float64)},
        explanation=(
            "How far the samples of a group lie along the direction of a concept, compared with random examples.",
            "It says what the layer holds, not what the score uses; examples may share more than the concept.",
        ),
    )
