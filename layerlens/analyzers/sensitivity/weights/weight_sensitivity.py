"""Which layers' weights the output depends on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import nn

from layerlens.analyzers.common.measure_registry import measure as known_measure
from layerlens.analyzers.common.messages import warn_left_out
from layerlens.errors import OptionError, check_count, choose, warn
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.fastpath import layers_called
from layerlens.model.layers import Selection
from layerlens.model.placement import home, need_weights
from layerlens.results import LayerProfile
from layerlens.targets.target import Spec

from .fisher import fisher_profile
from .hessian import Loss, hessian_profile
from .labeled_batches import LabeledSamples
from .likelihood import Kind
from .measured_effect import Metric, effect_profile
from .prune_and_quantize import Granularity, check_levels, pruning, quantization
from .weight_task import By, WeightTask, parameter_owners

WeightMeasure = Literal["fisher", "hessian_trace", "pruning", "quantization"]
OPTIONS: dict[str, tuple[str, ...]] = {
    "fisher": ("empirical", "draws", "likelihood"),
    "hessian_trace": ("loss", "likelihood", "probes", "estimator"),
    "pruning": ("sparsities", "structured", "metric", "target", "draws", "likelihood"),
    "quantization": ("bits", "granularity", "metric", "target", "draws", "likelihood"),
}
"""Measure -> the options that it reads besides the common ones."""


@known_measure(
    question="weights",
    cost="Fisher: F + C B a sample (C <= 20 classes; else 8 B)",
    needs="floating-point parameters",
    source="Martens 2020; Meyer et al. 2021; as in Han et al. 2015",
)
def weight_sensitivity(
    model: nn.Module,
    x: Input,
    layers: Selection = None,
    *,
    measure: WeightMeasure = "fisher",
    by: By = "layer",
    labels: Any = None,
    likelihood: Kind = "auto",
    loss: Loss | None = None,
    empirical: bool = False,
    draws: int = 8,
    probes: int = 12,
    estimator: Literal["hutch++", "hutchinson"] = "hutch++",
    sparsities: Sequence[float] = (0.25, 0.5, 0.75, 0.9),
    structured: bool = False,
    bits: Sequence[int] = (8, 4, 3, 2),
    granularity: Granularity = "channel",
    metric: Metric = "auto",
    target: Spec = None,
    null: bool = False,
    batch_size: int = 16,
    batched: bool | None = None,
    seed: int = 0,
    progress: bool | None = None,
    read: Callable[[Any], Inputs] = as_inputs,
    forward: Forward | None = None,
) -> LayerProfile:
    """Measure how much the output, or the loss, depends on the weights of each layer.

    - `"fisher"`: the trace of the layer's block of the Fisher information, F = E_x E_y~p(.|x) |grad log p(y|x)|^2:
      to second order the model's distribution moves by d' F d / 2 nats when the weights move by d. The labels are the
      model's own: summed over for up to 20 classes or outputs, drawn for more. The labels of the data are used only
      with `empirical`; that sum vanishes where a model has fitted them (Kunstner et al. 2019).
    - `"hessian_trace"`: the trace of the layer's block of the Hessian of the mean loss, which can be negative, by
      Hutch++ or, all layers at once, by Hutchinson's estimate.
    - `"pruning"`: the change of loss, accuracy or output when the smallest weights of one layer are set to zero.
    - `"quantization"`: the same when the weights of one layer are rounded to a few bits.

    The last two are measured by runs with changed copies; they include all orders, which a ranking by curvature does
    not. The loss is minus the log likelihood: cross-entropy, or half the squared distance of real outputs; places of
    a text or segmentation are averaged.

    Cost: Fisher F + C B a sample, one at a time (C classes or draws); Hessian F + B and, for each layer, `probes`
    double backward passes, two readings of the data (Hutchinson: `probes` for all layers, one reading); pruning and
    quantization layers x levels F, times 1 + draws with `null`. Memory: one batch, and for Hutch++ `probes` vectors of
    the size of the parameters, in float64.

    Args:
        x: ... Or a data set: a Dataset, DataLoader, list or other iterable of samples or of pairs (x, class), see
            `layerlens.inputs.batches`.
        layers: which layers, see `Selection`; None for every module that holds parameters itself. A selected container
            has all parameters below it that no deeper selected layer has. Parameters that layers share are counted
            once, for the first.
        measure: what is computed.
        by: `"layer"`, or `"parameter"` for a row per parameter tensor.
        labels: one for each sample: classes `(samples,)`, classes of places `(samples, places)` (-100 for none), or
            real numbers shaped like the output; None for the labels in the data; `"last"` where the last entry of each
            item of a data set is the label.
        likelihood: `"categorical"`, `"gaussian"` with variance 1, or `"bernoulli"` of logits; `"auto"` is categorical
            for an output `(batch, classes)` and for `logits` of texts, Gaussian for any other.
        loss: `loss(output, labels)` instead of minus the log likelihood, the mean over the samples it is given.
        empirical: whether the Fisher information is taken at the labels of the data.
        draws: number of labels drawn for a sample with more than 20 classes or outputs; for pruning and quantization
            number of draws of the null.
        probes: number of products with the Hessian, 3 or more; for each layer, or with Hutchinson for all.
        estimator: estimator of the trace of the Hessian.
        sparsities: shares of a layer's weights that are set to zero, a series each.
        structured: whether to set whole output channels to zero.
        bits: numbers of bits of the rounded weights, a series each.
        granularity: whether each output channel or each tensor has its own scale.
        metric: for pruning and quantization: `"loss"` (its rise) or `"accuracy"` (its drop), which need labels; or one
            that compares outputs, as in `noise_response`; `"auto"` is the loss where there are labels.
        target: a score to watch instead of the whole output.
        null: ... For pruning, zeros for as many random weights instead; for quantization, the same rounding errors at
            other places of the tensor.

    Returns:
        A `LayerProfile` in order of definition. Values `(layers,)`, or `(layers, levels)`. Standard errors are over
        samples (Fisher, pruning, quantization), or over probes (Hessian). Checks: `"parameters"`, how many;
        `"per parameter"`, the mean of the diagonal; of Fisher `"relative"`, the trace with each weight as its unit, and
        `"draw error"`, the part of the standard error that is due to drawn labels; of measured ones `"clean"`, the loss
        or accuracy as it is. `settings["shared"]` lists shared parameters, `settings["left_out"]` layers without a
        value.

    Raises:
        InputError: when input or labels cannot be read or are missing, or the model cannot be differentiated.
        LayerNotFound: when no selected layer holds parameters.
        OptionError: when an option is out of range, or belongs to another measure.
        TargetError: when the output has no batch axis, or the target does not fit.

    Warns:
        UserWarning: for the empirical Fisher, when values are not finite or all zero, or layers had to be left out.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 1, bias=False).double()
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]]).double()
        >>> weight_sensitivity(net, x).values.tolist()  # for a linear model: trace of x'x / n = (5 + 9) / 2
        [7.0]
    """
    choose("measure of weights", measure, OPTIONS)
    choose("by", by, ("layer", "parameter"))
    choose("estimator", estimator, ("hutch++", "hutchinson"))
    choose("granularity", granularity, ("channel", "tensor"))
    check_count("draws", draws)
    check_count("batch_size", batch_size)
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 3:
        raise OptionError(f"probes must be a whole number of at least 3, got {probes!r}.")
    shares, levels = check_levels(sparsities, bits)
    given = locals()
    for option in sorted({name for names in OPTIONS.values() for name in names} - set(OPTIONS[measure])):
        default = inspect.signature(weight_sensitivity).parameters[option].default
        if given[option] is not default and given[option] != default:
            fitting = ", ".join(name for name, names in OPTIONS.items() if option in names)
            raise OptionError(f"measure {measure!r} does not read {option}=; it is an option of {fitting}.")
    with borrowed(model, grad=measure in ("fisher", "hessian_trace")), layers_called():
        need_weights(model, "weight_sensitivity")
        samples = LabeledSamples(x, labels, batch_size, batched, read, home(model))
        task = WeightTask(
            model, samples, parameter_owners(model, layers, by), likelihood, null, seed, progress, forward
        )
        if measure == "fisher":
            profile = fisher_profile(task, draws=draws, empirical=empirical)
        elif measure == "hessian_trace":
            profile = hessian_profile(task, loss=loss, probes=probes, estimator=estimator)
        else:
            pruned = measure == "pruning"
            change = pruning(model, shares, structured) if pruned else quantization(model, levels, granularity)
            profile = effect_profile(task, change, metric, target, draws)
    _warn(profile, layers is not None)
    return profile


def _warn(profile: LayerProfile, explicit: bool) -> None:
    """Warn of what would mislead; layers without weights are reported only where layers were selected."""
    if explicit:
        warn_left_out("weight_sensitivity", profile.settings["left_out"], explicit)
    if not bool(profile.values.isfinite().all()):
        warn("weight_sensitivity: some values are not finite: the output or loss overflows.")
    elif not bool(profile.values.any()):
        warn(
            "weight_sensitivity: all values are zero: the output does not depend on these weights at these inputs.",
        )
