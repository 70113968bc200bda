"""Maps of any method at noisy copies of the input: their mean, their mean square and their variance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize, first_score
from layerlens.analyzers.common.features.references import Baselines, references
from layerlens.analyzers.common.messages import each_once, numbered, sample_numbers
from layerlens.analyzers.common.registry import Method, method_named
from layerlens.analyzers.common.rounds import Rounds
from layerlens.analyzers.common.scorer import Leaves, scoring, warn_of_zeros
from layerlens.errors import InputError, OptionError
from layerlens.inputs.inputs import Forward, Input, Inputs
from layerlens.model.layers import Selection
from layerlens.model.trees import map_tensors
from layerlens.progress import track
from layerlens.results import Attribution
from layerlens.results.maps.attribution import Values
from layerlens.signatures import refuse_unknown
from layerlens.targets.target import Spec

from ..saliency import cost_with
from .moments import Draws, Statistic, in_rounds
from .noise import Deviations, noise_scales, noisy_copies

FIRST = 16
"""Copies of the first round: fewer do not show how they scatter."""

OWN = ("model", "x", "target", "where", "layer", "forward", "hold", "progress")
"""Options that the noisy copies and the method on them share."""


def noisy_maps(
    model: nn.Module,
    x: Input,
    name: str,
    *,
    of: str,
    of_options: Mapping[str, Any],
    baselines: Baselines,
    target: Spec,
    where: Selection,
    samples: int,
    until: float | None,
    noise: float,
    stdevs: Deviations,
    seed: int,
    statistic: Statistic,
    batch_size: BatchSize,
    forward: Forward | None,
    settings: Mapping[str, Any],
) -> Attribution:
    """Return a statistic of the maps of method `of` at noisy copies of x; other arguments are those of `smooth_grad`.

    The target is chosen at x itself, and is the same for all copies.

    Raises:
        InputError: when no input is of floating-point numbers.
        OptionError: when an option does not fit.
    """
    inner = method_named(of, "method in of=")
    if inner.name == "auto":
        raise OptionError(f'{name} of "auto": name the method, such as of="integrated_gradients".')
    known = [one for one in inner.parameters if one not in OWN]
    refuse_unknown(of, of_options, known)
    options = dict(of_options)
    if where is not None:
        place = next((one for one in ("where", "layer") if one in inner.parameters), None)
        if place is None:
            raise OptionError(f"method {of!r} attributes to the input only; where={where!r} needs another method.")
        options[place] = where
    if baselines is not None and ("baseline" not in inner.parameters or "baseline" in options):
        raise OptionError(
            f"baselines= are drawn as the baseline of the method, one for each copy, and {of!r} "
            + ("was given one." if "baseline" in options else 'has none; of="integrated_gradients" has.')
        )
    with scoring(model, x, target, forward=forward) as scorer:
        inputs = scorer.inputs
        score, batch = first_score(scorer, scorer.values(), batch_size)
        values = {leaf: one.value.clone() for leaf, one in scorer.leaves.items() if one.is_input}
        if not values:
            raise InputError(
                f"{name} of {of!r} adds noise to inputs of floating-point numbers, and {', '.join(scorer.leaves)} "
                f"holds token ids. {name} of gradients adds it to their embeddings: leave of= out."
            )
        scales = noise_scales(name, scorer, values, noise, stdevs)
        starts = references(scorer, baselines, seed)[0] if baselines is not None else []
        aim, rows = scorer.target, scorer.rows
        first = noisy_copies(values, scales, rows[:1], 1, torch.Generator().manual_seed(seed))
        as_one = inner.needs == "several samples" or scorer.apart(first, rows[:1])

    def maps(changed: Inputs, own: torch.Tensor, chosen: torch.Tensor) -> Attribution:
        """The method on changed samples `own`, each with the reference `chosen`."""
        given = _of_rows(options, inputs, own)
        if starts:
            pairs = list(zip(chosen.tolist(), own.tolist(), strict=True))
            given["baseline"] = {leaf: torch.stack([starts[k][leaf][row] for k, row in pairs]) for leaf in starts[0]}
        with numbered(tuple(sample_numbers(own.tolist())), inputs.batch):
            return inner.function(model, changed, target=aim.on(None, own), forward=forward, **given)

    with each_once(f"{name} of {of}, on noisy copies"):
        plain = maps(inputs, rows, torch.zeros_like(rows))
        order = torch.Generator().manual_seed(seed ^ 1)  # other bits than those of the noise
        drawn = torch.randint(max(1, len(starts)), (samples,), generator=order).to(rows.device)
        parts = [(own, Draws(statistic)) for own in ([rows] if as_one else torch.split(rows, batch))]
        rounds = Rounds(name, "samples", samples, until, first=FIRST)

        def add(own: torch.Tensor, draws: Draws, wanted: range, generator: torch.Generator) -> None:
            at_once = 1 if as_one else max(1, batch // len(own))
            for done in track(wanted[::at_once], f"{name} of {of}"):
                copies = min(at_once, wanted.stop - done)
                repeated = own.repeat(copies)
                noisy = noisy_copies(values, scales, own, copies, generator)
                changed = inputs.rows(repeated, but=noisy).replace(noisy)
                each = maps(changed, repeated, drawn[done : done + copies].repeat_interleave(len(own)))
                for leaf, value in _by_name(each.values).items():
                    draws.add(leaf, value.reshape(copies, len(own), *value.shape[1:]))

        found = in_rounds(rounds, parts, seed, add)
    if statistic != "variance" or (noise and stdevs is None) or any(bool(one.any()) for one in scales.values()):
        warn_of_zeros(found.values, name)
    errors = found.errors
    return Attribution(
        values=_like(plain.values, found.values),
        axes=plain.axes,
        signed=plain.signed and statistic == "mean",
        units=f"squared {plain.units}" if statistic in ("square", "variance") else plain.units,
        target=aim.label,
        targets=aim.each,
        method=name,
        settings={
            "of": of,
            **rounds.settings,
            **({"noise": noise} if stdevs is None else {"stdevs": stdevs}),
            **({"baselines": f"drawn from {len(starts)}"} if starts else {}),
            "seed": seed,
            **settings,
            "batch_size": batch,
            **{key if key == "where" else f"{of}: {key}": value for key, value in plain.settings.items()},
        },
        score=score.detach(),
        checks=rounds.checks({"relative standard error": relative_error(found.values, errors)} if errors else {}),
        inputs=plain.inputs,
        tokens=plain.tokens,
        texts=plain.texts,
        used=plain.used,
        features=plain.features,
        index=plain.index,
        standard_error=None if errors is None else _like(plain.values, errors),
        degrees=None if errors is None else found.degrees,
        skewness=None if found.skewness is None else _like(plain.values, found.skewness),
        cost=_cost(inner, plain, rounds.count),
    )


def relative_error(means: Leaves, errors: Leaves, terms: Leaves | None = None) -> torch.Tensor:
    """Norm of the standard error of the mean over the norm of the mean, one number per sample.

    Means are sums of `terms`, if these are given; NaN where they cancel up to rounding.
    """

    def norm(parts: Leaves) -> torch.Tensor:
        squares = [part.double().square().reshape(len(part), -1).sum(dim=1) for part in parts.values()]
        return torch.stack(squares).sum(dim=0).sqrt()

    found = norm(errors) / norm(means).clamp_min(torch.finfo(torch.float64).tiny)
    if terms is None:
        return found
    rounding = 1e3 * max(torch.finfo(one.dtype).eps for one in terms.values())
    return torch.where((norm(terms) > 0) & (norm(means) <= rounding * norm(terms)), torch.nan, found)


def _cost(inner: Method, plain: Attribution, samples: int) -> str:
    return f"{samples + 1} times ({plain.cost or cost_with(inner.passes, plain.settings)})"


def _by_name(values: Values) -> dict[str, torch.Tensor]:
    return values if isinstance(values, dict) else {"": values}


def _like(plain: Values, parts: Leaves) -> Values:
    """Tensors by name in the form and dtype of the values of a method."""
    typed = {name: parts[name].to(value.dtype) for name, value in _by_name(plain).items()}
    return typed if isinstance(plain, dict) else typed[""]


def _of_rows(options: Mapping[str, Any], inputs: Inputs, rows: torch.Tensor) -> dict[str, Any]:
    """Options of a method, with the rows of tensors that hold one for each sample."""
    axes = {tensor.ndim for tensor in inputs.tensors().values()}

    def chosen(tensor: torch.Tensor) -> torch.Tensor:
        each = tensor.ndim in axes and len(tensor) == inputs.batch > 1
        return tensor[rows.to(tensor.device)] if each else tensor

    return {name: map_tensors(value, chosen) for name, value in options.items()}
