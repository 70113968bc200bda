"""How two models with the same layers differ: pretrained and fine-tuned, two epochs, with and without dropout."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import nn

from layerlens.analyzers.common.features.feature_batches import warn_unread
from layerlens.analyzers.common.features.layer_features import Pool, pool_name
from layerlens.analyzers.common.null_model import shuffled
from layerlens.errors import InputError, OptionError, check_count, warn
from layerlens.inputs.batches import Data, Labels, Read, Samples
from layerlens.inputs.inputs import Forward, as_inputs
from layerlens.model.layers import Layers, Selection
from layerlens.model.placement import need_weights, offloaded, sharded
from layerlens.progress import track
from layerlens.results import LayerProfile
from layerlens.signatures import public

from ..similarity.similarity_measures import LEAST, Sums, gram, unbiased
from .linear_probe import INPUT, layer_rows
from .linear_readout import FOLDS, Readout, Truth, split_folds, true_labels

SERIES = ("CKA", "CKA with an untrained twin", "change of the output", "change of the weights")
PROBES = ("probe", "probe of the other")
NAN = torch.tensor(torch.nan, dtype=torch.float64)

Triple: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Value, error and null."""


@public(renamed={"most": "max_samples"})
def compare(
    model: nn.Module,
    other: nn.Module | Mapping[str, torch.Tensor],
    data: Samples,
    labels: Labels | None = None,
    layers: Selection = None,
    *,
    pool: Pool = "mean",
    permutations: int = 20,
    penalty: float = 1.0,
    max_samples: int = 1000,
    batch_size: int = 16,
    batched: bool | None = None,
    read: Read = as_inputs,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> LayerProfile:
    """Compare the layers of two models of one kind: their outputs, their weights, and the labels read from them.

    For each layer that both models have under one name:

    - `"CKA"`: debiased linear CKA of the two layers on the data (Kornblith et al. 2019; Song et al. 2012): 1 is the
      same up to rotation and scale;
    - `"CKA with an untrained twin"`: the CKA between the first model and itself with its weights in random order, for
      scale: first layers are alike even then (.95 is common);
    - `"change of the output"`: ||h' - h|| / ||h|| over all samples; NaN where the widths differ;
    - `"change of the weights"`: ||W' - W|| / ||W|| over all parameters of the layer and of the layers inside it; NaN
      where there are none, or their shapes differ;
    - `"probe"`, `"probe of the other"`, with labels: right answers of a linear readout, see `linear_probe`.

    A model compared with itself has 1, 0 and 0. Layers that other tasks can build on keep a high CKA and probe while
    those that were replaced do not, which shows what a fine-tuning changed (Neyshabur et al. 2020).

    Cost: 3 F for each sample, and ten fits per layer with labels.

    Args:
        other: the second model, or a state dict of the first, as of another epoch.
        data: ... It is read three times.
        layers: which layers, see `Selection`; None for every layer but those that return another's output.
        permutations: number of random orders of the samples for the null of the CKA.

    Returns:
        A `LayerProfile` with the series above. The error of the CKA is a jackknife over groups of samples; for the
        probes, the standard error over samples. The null of the CKA is the mean over permuted samples. Its check is
        `"samples"`; `settings["left_out"]` says which layers could not be compared, and why.

    Raises:
        InputError: when the data holds fewer than 8 samples, or other ones when it is read again.
        LayerNotFound: when the selection matches no layer.
        MissingPackage: when labels are given and scikit-learn is not installed.
        OptionError: when a state dict does not fit the model, or an option is out of range.

    Warns:
        UserWarning: for fewer than 64 samples, and for layers left out.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> found = compare(net, net, torch.randn(100, 4))
        >>> found.layers, [abs(round(value, 6)) for value in found.values[2, [0, 2, 3]].tolist()]
        (('0', '1', '2'), [1.0, 0.0, 0.0])
    """
    check_count("permutations", permutations)
    check_count("max_samples", max_samples)
    data = Data.of(data, labels, batch_size=batch_size, batched=batched, read=read, progress=progress)
    data.check_rereadable(3, "compare")
    second = _second(model, other)
    rows_of = functools.partial(layer_rows, pool=pool, max_samples=max_samples, seed=seed, what="compare")
    own = rows_of(model, data, layers, forward)
    paths = list(dict.fromkeys(name.split(" #")[0] for name in own.layers if name != INPUT))
    shared = [path for path in paths if path in Layers(second)]
    if not shared:
        raise OptionError(
            f"{type(model).__name__} and {type(second).__name__} have no layer of one name; compare layers of any "
            "models with similarity(model, data, other=...)."
        )
    theirs = rows_of(second, data, shared, forward)
    twin = rows_of(model, data, shared, shuffled(model, forward, seed))
    counts = (own.count, theirs.count, twin.count)
    if len(set(counts)) > 1 or len(own.index) < 2 * LEAST:
        raise InputError(
            f"compare: the data had {', '.join(map(str, counts))} samples when it was read three times; it must hold "
            f"the same ones each time, {2 * LEAST} or more."
        )
    names = [name for name in own.layers if name != INPUT and name in theirs.layers]
    left_out = own.left_out | theirs.left_out
    for name in own.layers:
        if name not in names and name != INPUT:
            left_out.setdefault(name, "the other model has none of that name, or it did not run there")
    probe = None
    if own.labels is not None:
        probe = functools.partial(_probe, true_labels(own.labels, "compare"), Readout(penalty, seed), seed)
    series = []
    for name in track(names, "comparing models", enabled=progress):
        rows = (own.layers[name], theirs.layers[name], twin.layers.get(name))
        change = _weight_change(name.split(" #")[0], model, second)
        series.append(_series(*rows, change, probe, permutations, seed))
    warn_unread("compare", left_out, layers is not None)
    if len(own.index) < 64:
        warn(f"compare: {len(own.index)} samples are few; read the CKA with its error and null.")
    values, error, null = (part.clone() for part in torch.stack(series, dim=1))
    other_name = type(second).__name__ if isinstance(other, nn.Module) else "a state dict of it"
    return LayerProfile(
        quantity="likeness and change",
        layers=tuple(names),
        values=values,
        units="1",
        signed=False,
        method=f"{type(model).__name__} and {other_name} on {len(own.index)} samples",
        settings={
            "pool": pool_name(pool),
            "permutations": permutations,
            "penalty": penalty,
            "max_samples": max_samples,
            "seed": seed,
            "left_out": left_out,
        },
        series=SERIES + (PROBES if probe is not None else ()),
        error=error,
        null=null,
        checks={"samples": torch.tensor(len(own.index))},
        explanation=(
            "CKA says how alike a layer of both models places these samples (1 is the same up to rotation and scale), "
            "the changes how far its outputs and weights moved relative to what they were.",
            "A change is neither good nor bad by itself, and layers far from their twin's CKA alone are shaped by "
            "training: hold each value against that series, and the probes, before calling a layer general or new.",
        ),
    )


def _second(model: nn.Module, other: nn.Module | Mapping[str, torch.Tensor]) -> nn.Module:
    """Return the second model; a state dict is loaded into a copy of the first.

    Raises:
        OptionError: when it does not fit.
    """
    if isinstance(other, nn.Module):
        return other
    if not isinstance(other, Mapping):
        raise OptionError(f"other must be a module or a state dict of the model, got {type(other).__name__}.")
    need_weights(model, "a copy of the model that gets other weights")
    made = copy.deepcopy(model)
    try:
        made.load_state_dict(other)
    except (RuntimeError, AttributeError) as error:
        raise OptionError(
            f"the state dict does not fit {type(model).__name__}: {' '.join(str(error).split())}"
        ) from error
    return made


def _series(
    first: torch.Tensor,
    second: torch.Tensor,
    twin: torch.Tensor | None,
    weight_change: torch.Tensor,
    probe: Callable[[torch.Tensor], Triple] | None,
    permutations: int,
    seed: int,
) -> torch.Tensor:
    """Return value, error and null of each series of one layer, `(3, series)`."""
    first, second = first.double(), second.double()
    moved = (second - first).norm() / first.norm() if first.shape == second.shape else NAN
    series = [
        _cka(first, second, permutations, seed),
        (NAN, NAN, NAN) if twin is None else _cka(first, twin.double(), permutations, seed),
        (moved, NAN, NAN),
        (weight_change, NAN, NAN),
    ]
    if probe is not None:
        series += [probe(first), probe(second)]
    return torch.stack([torch.stack([part.double() for part in parts]) for parts in zip(*series, strict=True)])


def _probe(truth: Truth, readout: Readout, seed: int, rows: torch.Tensor) -> Triple:
    """Return the mean over samples of held-out scores, its error, and chance."""
    folds = split_folds(truth, min(FOLDS, truth.smallest), seed)
    return (*readout.score(readout.projected(rows), truth, folds), torch.tensor(truth.chance))


def _cka(first: torch.Tensor, second: torch.Tensor, permutations: int, seed: int) -> Triple:
    """Return the CKA, its error by the jackknife, and the mean over permuted samples."""
    sums = Sums(unbiased, permutations, torch.Generator().manual_seed(seed))
    sums.add(gram(first)[None], gram(second)[None])
    error, null = sums.error(), sums.null()
    assert error is not None and null is not None
    return sums.ratio()[0, 0], error[0, 0], null.mean(dim=0)[0, 0]


def _weight_change(path: str, first: nn.Module, second: nn.Module) -> torch.Tensor:
    """Return the relative change of all parameters at and below a path."""
    parts = [model.get_submodule(path) for model in (first, second)]
    ours, theirs = (list(part.parameters()) for part in parts)
    if any(offloaded(part) or sharded(part) for part in parts):
        return NAN  # they are not here to be compared
    if not ours or [one.shape for one in ours] != [one.shape for one in theirs]:
        return NAN
    before = torch.cat([one.detach().double().cpu().flatten() for one in ours])
    after = torch.cat([one.detach().double().cpu().flatten() for one in theirs])
    return (after - before).norm() / before.norm() if bool(before.any()) else NAN
