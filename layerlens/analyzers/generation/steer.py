"""Steering: a direction added to a layer at every place and step, and what else that changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_shapes import one_match
from layerlens.axes.followed import followed
from layerlens.errors import InputError, OptionError, check_count, check_seed
from layerlens.inputs.batches import Data, Read, Samples
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.borrowed import borrowed, seed_torch
from layerlens.model.layers import Selection
from layerlens.model.selection import name_of
from layerlens.probes.edits import add
from layerlens.probes.probe import Probe
from layerlens.progress import track
from layerlens.results import Steering
from layerlens.signatures import public
from layerlens.targets.outputs import log_probabilities, main_output
from layerlens.targets.target import Spec, Target, as_target

from .generate import generate
from .written import text_of

NEUTRAL = (
    "The train to the coast leaves at nine in the morning and arrives before noon.",
    "Water boils at a lower temperature on a mountain than at the sea.",
    "She put the keys on the table, opened the window and sat down to read.",
    "The committee will meet on Tuesday to discuss the budget for the next year.",
    "To make the dough, mix the flour with a little salt and add the water slowly.",
    "The function returns a list of numbers, sorted from the smallest to the largest.",
)
"""Texts about nothing in particular."""

Sets = tuple[Samples, Samples]


@public
def steer(
    model: nn.Module,
    x: Input,
    direction: torch.Tensor | Sets,
    layer: Selection,
    *,
    strength: float | Sequence[float] = (0.25, 0.5, 1.0),
    absolute: bool = False,
    target: Spec = None,
    neutral: Any = None,
    max_new_tokens: int | None = None,
    pool: Literal["mean", "last"] = "mean",
    draws: int = 3,
    seed: int = 0,
    read: Read = as_inputs,
    progress: bool | None = None,
    tokenizer: Callable[..., Any] | None = None,
    forward: Forward | None = None,
) -> Steering:
    """Add a direction to what a layer returns, at every place and step, and measure what that changes.

    h -> h + s m v / |v|, with the strength s and the typical length m of h, or h + s v with `absolute`. A language
    model also writes a text with it. Next to it the same is done with random directions of the same length: an effect
    that those have as well is due to the size of the change, not to the direction. What else changes is measured on
    neutral inputs: the divergence of the output, KL(p || p') at each place, and the perplexity of neutral texts.

    Cost: a forward pass for x and each neutral input, for each strength and direction, and the texts.

    Args:
        x: ... Of a language model one prompt.
        direction: `(units,)`, such as `basis.direction(3)`, a vector of `tcav`, or the weights of a probe; or two sets
            of samples `(with, without)`: the difference of their mean outputs of the layer.
        layer: ... Or one tensor of it (`"rnn/h_n"`).
        strength: one or several, below 0 for the opposite; in typical lengths of the layer's output.
        absolute: whether strengths multiply the direction as it is.
        target: what the effect is of, see `as_target`; None for the divergence of the output: of the next token in a
            language model.
        neutral: inputs on which nothing should change: a list of texts, or one input; None takes some English
            sentences if there is a tokenizer, else x.
        max_new_tokens: length of the texts; None is 24 for models with a `generate` of transformers, and 0 for others.
        pool: what counts of a sample in two sets: the mean over its places, or the last place.
        draws: number of random directions.
        read: turns a batch, or one text, into model inputs.
        tokenizer: reads and writes the texts.

    Returns:
        A `Steering`.

    Raises:
        InputError: when a set holds nothing, or a prompt is not one text.
        OptionError: when the direction does not fit the layer, is zero or not finite, or an option is out of range.
        LayerNotFound: when the selection matches no layer.

    Source: Turner et al. 2023, "Activation addition"; Rimsky et al. 2024 (means over contrasting prompts).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> first = torch.tensor([1.0, 0.0, 0.0, 0.0])
        >>> found = steer(net, torch.ones(1, 3), first, "1", strength=2.0, absolute=True, target=1)
        >>> bool(torch.isclose(found.effect[0], 2 * net[2].weight[1, 0].double()))
        True
    """
    check_count("draws", draws)
    check_seed(seed)
    strengths = [float(one) for one in (strength if isinstance(strength, Sequence) else [strength])]
    if not strengths or not all(0 < abs(one) < float("inf") for one in strengths):
        raise OptionError(f"strength is a number other than 0, or a list of those; got {strength!r}.")
    path, (calls, tensors, _) = next(iter(one_match(model, layer).found().items()))
    name = name_of(path, calls, tensors)
    given = as_inputs(read(x)).named_for(model, forward)
    others = _neutral(neutral, given, read, tokenizer)
    with borrowed(model, grad=False):
        runs = _Runs(model, name, given, forward, seed)
        vector, method = _direction(runs, direction, pool, read, progress)
        rows = torch.cat([runs.rows(one) for one in others])
        lengths = rows.norm(dim=1).clamp_min(1e-30)
        typical = float(lengths.median())
        vector = vector if absolute else vector / vector.norm() * typical
        generator = torch.Generator().manual_seed(seed)
        random = [torch.randn(len(vector), generator=generator, dtype=torch.float64) for _ in range(draws)]
        random = [one / one.norm() * vector.norm() for one in random]
        score = _Score(runs, given, others, target)
        todo = [(own, s) for s in strengths for own in (vector, *random)]
        found = [score(runs.change(v * s)) for v, s in track(todo, "steering", enabled=progress)]
        ratios = [float(((rows + vector * s).norm(dim=1) / lengths).median()) for s in strengths]
    columns = [torch.tensor([row[k] for row in found], dtype=torch.float64).reshape(-1, 1 + draws) for k in range(3)]
    count = max_new_tokens
    if count is None:
        count = 24 if score.text and hasattr(model, "generation_config") and forward is None else 0
    last = max(strengths, key=abs)
    steps = [None, *[vector * s for s in strengths], random[0] * last] if count else []
    changes = [{} if one is None else {name: add(runs.change(one))} for one in steps]
    options: dict[str, Any] = {"max_new_tokens": count, "seed": seed, "tokenizer": tokenizer, "forward": forward}
    written = track(changes, "steered texts", enabled=progress)
    plain, *texts, other = [generate(model, given, edits=edits, **options).text for edits in written] or ["", ""]
    perplexity = score.perplexity.reshape(-1)
    return Steering(
        name, vector, typical, torch.tensor(strengths, dtype=torch.float64),
        columns[0][:, 0], columns[0][:, 1:], columns[1][:, 0], columns[1][:, 1:],
        torch.tensor(ratios, dtype=torch.float64),
        (score.units, score.unit_of_divergence),
        score.label,
        plain, tuple(texts), other,
        torch.cat([perplexity, columns[2][:, 0]]) if len(perplexity) else perplexity,
        columns[2][:, 1:] if len(perplexity) else columns[2][:0, 1:],
        method,
        {"absolute": absolute, "target": score.aim is not None and score.label, "draws": draws, "seed": seed,
         "neutral": len(others), "max_new_tokens": count, "pool": pool},
        (
            "The effect is what the direction changes on x, the side effect what it changes on neutral inputs; random "
            "directions of the same length show what the size of the change does by itself.",
            "That a direction moves the output does not say that the model uses it, nor that it stands for one thing.",
        ),
    )  # fmt: skip


def _neutral(neutral: Any, given: Inputs, read: Read, tokenizer: Any) -> list[Inputs]:
    """The neutral inputs, one for each text.

    Raises:
        InputError: when there are none.
    """
    if neutral is None:
        neutral = NEUTRAL if tokenizer is not None else [given]
    elif not isinstance(neutral, (list, tuple)) or not all(isinstance(one, (str, dict)) for one in neutral):
        neutral = [neutral]
    if not neutral:
        raise InputError("neutral= holds no input; None takes some sentences, or x.")
    return [as_inputs(read(one)) for one in neutral]


def _direction(
    runs: _Runs, direction: torch.Tensor | Sets, pool: Literal["mean", "last"], read: Read, progress: bool | None
) -> tuple[torch.Tensor, str]:
    """The direction `(units,)` float64, and where it came from.

    Raises:
        OptionError: when it is neither a vector nor two sets, does not fit the layer, is zero, or is not finite.
    """
    method = "given direction"
    if isinstance(direction, (tuple, list)) and len(direction) == 2:
        means = []
        for samples, what in zip(direction, ("with", "without"), strict=True):
            data = Data.of(samples, batch_size=1, read=read, progress=progress)
            rows = [runs.rows(batch.inputs) for batch in data.batches(runs.model, f"steer: samples {what}")]
            means.append(torch.stack([one[-1] if pool == "last" else one.mean(dim=0) for one in rows]).mean(dim=0))
        direction, method = means[0] - means[1], "difference of means"
    if not isinstance(direction, torch.Tensor) or direction.squeeze().ndim != 1 or direction.is_complex():
        raise OptionError(
            "direction is a tensor (units,), such as basis.direction(3), or two sets of samples (with, without); got "
            f"{type(direction).__name__}{f' {tuple(direction.shape)}' if isinstance(direction, torch.Tensor) else ''}."
        )
    vector = direction.detach().double().cpu().squeeze()
    if len(vector) != runs.units:
        raise OptionError(
            f"the direction has {len(vector)} units and layer {runs.layer!r} {runs.units}: take that of the same layer."
        )
    if not bool(vector.isfinite().all()) or not bool(vector.any()):
        raise OptionError(f"the direction at {runs.layer!r} is zero or not finite, so it leads nowhere: {method}.")
    return vector, method


class _Runs:
    """Runs of a borrowed model with something added at a layer."""

    def __init__(self, model: nn.Module, layer: str, inputs: Inputs, forward: Forward | None, seed: int) -> None:
        self.model, self.layer, self.forward, self.seed = model, layer, forward, seed
        path, _, tensor = layer.partition("/")
        site = followed(model, inputs, forward).site(path.partition("#")[0])
        unit, axes = site.axis("unit", tensor), site.seen(tensor)
        self.units, self.behind = axes[unit].size, len(axes) - unit - 1

    def change(self, vector: torch.Tensor) -> torch.Tensor:
        """Return a vector of units in the shape that broadcasts to the layer's output."""
        return vector.reshape(-1, *[1] * self.behind)

    def output(self, inputs: Inputs, change: torch.Tensor | None) -> torch.Tensor:
        """Return the main output, float64 on the CPU."""
        return main_output(self.whole(inputs, change)).double().cpu()

    def whole(self, inputs: Inputs, change: torch.Tensor | None) -> Any:
        """Return what the model returns."""
        seed_torch(self.seed)
        with Probe(self.model, (), edits={} if change is None else {self.layer: add(change)}):
            return inputs.run(self.model, self.forward)

    def rows(self, inputs: Inputs) -> torch.Tensor:
        """Return what the layer returns at each place of every call, `(places, units)` float64."""
        with Probe(self.model, self.layer) as record:
            inputs.run(self.model, self.forward)
        found = [next(iter(call.tensors.values())).double().cpu() for call in record.order]
        return torch.cat([one.movedim(one.ndim - 1 - self.behind, -1).reshape(-1, self.units) for one in found])


class _Score:
    """What a change does: on x, on neutral inputs, and to the perplexity of neutral texts."""

    def __init__(self, runs: _Runs, given: Inputs, others: Sequence[Inputs], target: Spec) -> None:
        self.runs, self.given, self.others = runs, given, others
        before = runs.whole(given, None)
        self.aim: Target | None = None if target is None else as_target(target).on(given).resolve(before)
        main = main_output(before)
        self.text = main.ndim == 3 and _is_text(given, runs.model, main)
        self.classes = self.text or (main.ndim == 2 and main.shape[1] > 1)
        self.unit_of_divergence = "nats" if self.classes else "share of the output"
        self.label = "the next token" if self.text else "the output"
        self.units, self.plain = self.unit_of_divergence, self._numbers(main.double().cpu())
        if self.aim is not None:
            self.start, self.label, self.units = self.aim(before).double().cpu(), self.aim.label, "score"
        if self.text:
            self.plain = self.plain[-1:]
        self.neutral = [self._numbers(runs.output(one, None)) for one in others]
        self.perplexity = torch.empty(0, dtype=torch.float64)
        if self.text and all(_is_text(one, runs.model, None) for one in others):
            self.perplexity = torch.tensor([self._perplexity(self.neutral)], dtype=torch.float64)

    def __call__(self, change: torch.Tensor) -> tuple[float, float, float]:
        """Return the effect, the side effect and the perplexity."""
        after = self.runs.whole(self.given, change)
        if self.aim is not None:
            effect = float((self.aim(after).double().cpu() - self.start).mean())
        else:
            numbers = self._numbers(main_output(after).double().cpu())
            effect = self._divergence(self.plain, numbers[-1:] if self.text else numbers)
        changed = [self._numbers(self.runs.output(one, change)) for one in self.others]
        each = [self._divergence(*pair) for pair in zip(self.neutral, changed, strict=True)]
        return effect, sum(each) / len(each), self._perplexity(changed) if len(self.perplexity) else 0.0

    def _numbers(self, output: torch.Tensor) -> torch.Tensor:
        """Log-probabilities `(places, classes)`, or the output of each sample."""
        return log_probabilities(output.flatten(0, -2)) if self.classes else output.flatten(1)

    def _divergence(self, before: torch.Tensor, after: torch.Tensor) -> float:
        """KL(before || after), a mean over places or samples; of numbers their relative change."""
        if not self.classes:
            return float(((after - before).norm(dim=1) / before.norm(dim=1).clamp_min(1e-30)).mean())
        terms = torch.where(before.isneginf(), 0.0, before.exp() * (before - after))
        return float(terms.sum(dim=1).clamp_min(0).mean())

    def _perplexity(self, scores: Sequence[torch.Tensor]) -> float:
        """Return exp of the mean negative log-probability of each token but the first of each text."""
        losses = []
        for one, log_p in zip(self.others, scores, strict=True):
            ids = text_of(one, self.runs.model).ids
            assert ids is not None
            losses.append(-log_p[:-1].gather(1, ids[0, 1:, None].cpu()).flatten())
        return float(torch.cat(losses).mean().exp())


def _is_text(inputs: Inputs, model: nn.Module, output: torch.Tensor | None) -> bool:
    """Whether an input is one text, and an output has scores at each of its places."""
    try:
        text = text_of(inputs, model)
    except InputError:
        return False
    return output is None or output.shape[1] == text.count
