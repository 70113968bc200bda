"""What a map should satisfy: completeness, zeros where nothing happens, a score that rises with what is added."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.analyzers.common.features.input_features import Spec as FeatureSpec
from layerlens.errors import OptionError
from layerlens.inputs.inputs import Forward, Input
from layerlens.targets.target import Spec

from .correlations import squared_effects
from .insertion_deletion import Measure, removal, removal_metric
from .place_ranks import Map, ranks


@removal_metric
def completeness(
    model: nn.Module,
    x: Input,
    attribution: Map,
    *,
    target: Spec = None,
    fill: Baseline = "zero",
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> torch.Tensor:
    """Measure how far the sum of a map is from the score of x less that of the fill, `(batch,)`; lower is better.

    |sum of phi - (S(x) - S(x'))|, in units of the score (Sundararajan et al. 2017, proposition 1). `Completeness` in
    Quantus asks whether both are the same to the bit. Only maps in units of the score can be complete.

    Example:
        >>> model = nn.Linear(4, 1).double()
        >>> x = torch.rand(2, 4).double()
        >>> completeness(model, x, x * model.weight.detach(), target=0).max() < 1e-9
        tensor(True)
    """
    with removal(model, x, target, fill, "places", "score", seed, batch_size, forward) as removed:
        full, empty = (end.double() for end in removed.ends)
        return (removed.sums(attribution).sum(dim=1) - (full - empty)).abs()


@removal_metric
def non_sensitivity(
    model: nn.Module,
    x: Input,
    attribution: Map,
    *,
    target: Spec = None,
    eps: float = 1e-5,
    measure: Measure = "auto",
    features: FeatureSpec = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> torch.Tensor:
    """Count the features that are zero in the map and matter, or the other way round, `(batch,)`; lower is better.

    |A_0 xor X_0|, A_0 the features with phi_i = 0, X_0 those with E (S(x) - S(x with i drawn again))^2 = 0 (Nguyen &
    Martinez 2020, sec. 3; `NonSensitivity` in Quantus). Draws are those of `monotonicity_correlation`.

    Args:
        eps: share of the largest |phi_i|, and of the largest change of the score, up to which a feature counts as zero.
        features: what is drawn again at a time, as in `feature_ablation`: None for about 64 cells of an image, and each
            token, step or column.

    Raises:
        OptionError: when an option is out of range.

    Example:
        >>> model = nn.Linear(4, 1)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 2.0, 0.0, 0.0]]))
        >>> non_sensitivity(model, torch.rand(1, 4), torch.tensor([[1.0, 0.0, 0.0, 1.0]]), target=0)
        tensor([2.], dtype=torch.float64)
    """
    if not 0 <= eps < 1:
        raise OptionError(f"eps must be at least 0 and below 1, got {eps!r}.")
    with removal(model, x, target, "zero", features, measure, seed, batch_size, forward) as removed:
        size = removed.sums(attribution).abs()
        effect = squared_effects(removed, seed, "non_sensitivity").sqrt()
        unused, silent = (part <= eps * part.amax(dim=1, keepdim=True) for part in (size, effect))
        return ((unused ^ silent) & removed.own).sum(dim=1).double()


@removal_metric
def monotonicity(
    model: nn.Module,
    x: Input,
    attribution: Map,
    *,
    target: Spec = None,
    fill: Baseline = "zero",
    measure: Measure = "auto",
    features: FeatureSpec = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> torch.Tensor:
    """Return 1 where no feature lowers the score when features are put in, least important first, 0 elsewhere.

    Arya et al. 2019, sec. 6, `(batch,)`, up to rounding. The order is that of the signed values; give `map.abs()` to
    ignore signs, as `Monotonicity` in Quantus does, which however puts in the fill instead of x.

    Args:
        features: what is put in at a time, as in `feature_ablation`: None for about 64 cells of an image, and each
            token, step or column.

    Example:
        >>> model = nn.Linear(3, 1)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, -2.0, 3.0]]))
        >>> x = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
        >>> monotonicity(model, x, x * model.weight.detach().abs(), target=0)
        tensor([1., 0.], dtype=torch.float64)
    """
    with removal(model, x, target, fill, features, measure, seed, batch_size, forward) as removed:
        rank = ranks(-removed.sums(attribution), seed, removed.own)
        scores = removed.one_by_one("monotonicity", rank, keep=True)[1][:, 1:]
        rounding = 10 * torch.finfo(scores.dtype).eps * scores.abs().amax(dim=1, keepdim=True)
        return (scores.diff(dim=1) >= -rounding).all(dim=1).double()
