"""How much the output depends on each layer: the answer of the output to noise at that layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_sites import Site, copied_rows, survey, taps
from layerlens.analyzers.common.calls.fastpath import layers_called
from layerlens.analyzers.common.measure_registry import measure
from layerlens.analyzers.common.messages import listed, warn_left_out
from layerlens.analyzers.common.null_model import shuffled
from layerlens.errors import LayerNotFound, OptionError, check_count, warn
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.model.placement import GATHERED, refuse_parts
from layerlens.model.trees import map_tensors
from layerlens.probes.probe import Edit, Probe
from layerlens.progress import track
from layerlens.results import LayerProfile
from layerlens.targets.target import Spec

from ..output_metrics import QUANTITIES, Metric, Readout, readout


@measure(
    question="matters_to_output",
    cost="F for each layer, level (3) and draw (8)",
    needs="floating-point layer outputs",
    source="as in Arora et al. 2018, sec. 4 (noise stability)",
)
def noise_response(
    model: nn.Module,
    x: Input,
    layers: Selection = None,
    *,
    levels: Sequence[float] = (0.1, 0.5, 1.0),
    draws: int = 8,
    metric: Metric = "auto",
    target: Spec = None,
    null: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> LayerProfile:
    """How much the model's output changes when Gaussian noise is added at one layer at a time.

    At a call of a layer that returned h the model goes on with h + level std(h) e, e ~ N(0, I), where std(h) is that of
    each sample's own values (their magnitude, for a layer with one number per sample); all other calls stay as they
    are. With y and y' the output without and with noise, the metrics are

    - `"kl"`: KL(p || p') = sum of p log(p / p'), p = softmax(y), or y itself where it is a distribution;
    - `"flip"`: the share of samples whose largest output is another one;
    - `"relative_change"`: ||y' - y|| / ||y||;
    - `"change"`: ||y' - y||.

    Of a nested layer output every floating-point tensor gets noise relative to its own spread (of an LSTM the sequence
    and both states), so that none of the ways on is overlooked. All samples get the same draws e, so that a batch gives
    what its samples give alone; all levels too, so that they can be compared. One run of the model per layer, level
    and draw, many at once.

    Args:
        model: any module; it is run in eval mode.
        x: its input, `(batch, ...)`: a tensor, a tuple of arguments, or a dict of keyword arguments.
        layers: which layers, as in `Selection`; None for every distinct activation, see `jacobian`.
        levels: standard deviations of the noise, relative to that of the layer's output; at 0 the answer is 0.
        draws: of the noise, for each layer and level.
        metric: `"auto"` is `"kl"` for an output `(batch, classes)`, `"change"` with a target, and `"relative_change"`
            for any other.
        target: a score to watch instead of the whole output, as in `layerlens.as_target`.
        null: also measure the model with the entries of each parameter tensor in random order (buffers stay), as a
            mark for what the architecture alone gives.
        seed: of the noise, of the null, and for models that draw numbers.
        progress: whether to show a bar; None when stderr is a terminal and it takes long.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        A `LayerProfile` with values `(layers, levels)`: means over draws and batch, with the standard error over draws.
        Its check is `"per sample"`, `(layers, levels, batch)`; `settings["left_out"]` says which layers could not be
        measured, and why.

    Raises:
        InputError: when the input cannot be read.
        LayerNotFound: when the selection matches no layer that can be measured.
        OptionError: when an option is out of range, or the metric does not fit the output.
        TargetError: when the output has no batch axis and no target is given, or the target does not fit it.

    Warns:
        UserWarning: when there is one draw only, when layers had to be left out, when a layer's output is constant
            across a sample (its noise is none then), or when values are not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> profile = noise_response(net, torch.tensor([[1.0, -1.0]]), "0", levels=(0.0, 1.0))
        >>> profile.series, profile.values.shape, float(profile.values[0, 0])
        (('noise 0 std', 'noise 1 std'), torch.Size([1, 2]), 0.0)
    """
    check_count("draws", draws)
    sizes = _levels(levels)
    with borrowed(model, grad=False), layers_called():
        refuse_parts(model, "noise_response", GATHERED)
        inputs = as_inputs(x)
        found = survey(model, inputs, layers, forward, seed=seed)
        read = readout(metric, target, found.output, inputs.batch)
        trial = _Trial(model, inputs, forward, read, seed, sizes, draws, found.copies(len(sizes) * draws))
        left_out, constant = dict(found.left_out), list[str]()
        answers: dict[str, torch.Tensor] = {}
        for site in track(found.sites, "noise response", enabled=progress):
            answer, flat = trial(site)
            if answer is None:
                left_out[site.name] = "did not run again in the same way: the route of this model changes"
                continue
            constant += [site.name] * flat
            answers[site.name] = answer
        if not answers:
            raise LayerNotFound(f"none of the {len(found.sites)} layer(s) ran again in the same way.")
        chance = _chance(trial, [site for site in found.sites if site.name in answers], progress) if null else None
    responses = torch.stack(list(answers.values()))  # (layers, levels, draws, batch)
    by_draw = responses.mean(dim=3)
    names = tuple(answers)
    _warn(names, by_draw, left_out, constant, layers is not None)
    quantity, units = QUANTITIES[read.metric]
    return LayerProfile(
        quantity=quantity,
        layers=names,
        values=by_draw.mean(dim=2),
        units=units if read.target is None else "score",
        signed=False,
        method=f"noise at one layer at a time, {draws} draw{'s' * (draws > 1)}, {read.words}",
        settings={
            "levels": tuple(sizes),
            "draws": draws,
            "metric": read.metric,
            "target": None if read.target is None else read.target.label,
            "seed": seed,
            "left_out": left_out,
        },
        series=tuple(f"noise {level:g} std" for level in sizes),
        error=by_draw.std(dim=2) / draws**0.5 if draws > 1 else None,
        null=chance,
        checks={"per sample": responses.mean(dim=2)},
        explanation=(
            f"Each value is the mean {quantity} ({units if read.target is None else 'units of the score'}) when noise "
            "of the given size, relative to the layer's own spread, is added at this layer alone: the larger, the more "
            "the output depends on it.",
            "It does not say what the layer does, nor that the model needs it: noise takes a layer where training "
            "never did, and what follows can make up for it (see ablate).",
        ),
    )


def _chance(trial: _Trial, sites: list[Site], progress: bool | None) -> torch.Tensor:
    """The same of the model with shuffled weights, `(layers, levels)`; NaN where it takes another route."""
    twin = dataclasses.replace(trial, forward=shuffled(trial.model, trial.forward, trial.seed), clean={})
    found = [twin(site)[0] for site in track(sites, "noise response, null", enabled=progress)]
    other = torch.full((len(trial.levels),), float("nan"), dtype=torch.float64)
    return torch.stack([other if answer is None else answer.mean(dim=(1, 2)) for answer in found])


@dataclasses.dataclass
class _Trial:
    """Measures one site at a time."""

    model: nn.Module
    inputs: Inputs
    forward: Forward | None
    read: Readout
    seed: int
    levels: list[float]
    draws: int
    copies: int
    clean: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)

    def __call__(self, site: Site) -> tuple[torch.Tensor | None, bool]:
        """`(levels, draws, batch)`, None when the site did not run; and whether its output is constant."""
        batch = self.inputs.batch
        answer = torch.zeros(len(self.levels), self.draws, batch, dtype=torch.float64)
        places = [(place, draw) for draw in range(self.draws) for place, level in enumerate(self.levels) if level]
        at_once = 1 if None in site.axes else self.copies  # an output that all rows share holds one draw at a time
        constant = False
        for start in range(0, len(places), at_once):
            part = places[start : start + at_once]
            if len(part) not in self.clean:  # made in the same company, so that what does not answer is equal in bits
                self.clean[len(part)] = self._output(len(part), {})
            noise = Noise([(draw, self.levels[place]) for place, draw in part], self.seed, batch)
            noisy = self._output(len(part), taps([site], noise))
            if not noise.fired:
                return None, False
            constant |= noise.constant
            change = self.read.change(self.clean[len(part)], noisy).reshape(len(part), batch)
            for (place, draw), values in zip(part, change, strict=True):
                answer[place, draw] = values
        return answer, constant

    def _output(self, copies: int, edits: dict[str, Edit]) -> torch.Tensor:
        rows = copied_rows(self.inputs.batch, copies)
        inputs = self.inputs.rows(rows)
        torch.manual_seed(self.seed)
        with Probe(self.model, (), edits=edits):
            return self.read(inputs.run(self.model, self.forward), rows)


def _levels(levels: Sequence[float]) -> list[float]:
    try:
        sizes = [float(level) for level in levels]
    except (TypeError, ValueError) as error:
        raise OptionError(f"levels must be numbers of at least 0, one or more, got {levels!r}.") from error
    if not sizes or not all(0 <= level < float("inf") for level in sizes):
        raise OptionError(f"levels must be numbers of at least 0, one or more, got {levels!r}.")
    return sizes


def _warn(
    names: Sequence[str], by_draw: torch.Tensor, left_out: dict[str, str], constant: list[str], explicit: bool
) -> None:
    """Say what would mislead."""
    warn_left_out("noise_response", left_out, explicit)
    if by_draw.shape[2] == 1:
        warn("noise_response: one draw gives no standard error. Use draws=8.")
    if constant:
        warn(
            f"noise_response: the output of {listed(constant)} is constant across a sample, so noise relative to its "
            "spread is none there: a value of 0 does not say that the layer is not used.",
        )
    odd = [name for name, finite in zip(names, by_draw.isfinite().all(dim=(1, 2)).tolist(), strict=True) if not finite]
    if odd:
        warn(
            f"noise_response: the values of {listed(odd)} are not finite: the output is zero or overflows there.",
        )


class Noise:
    """Adds level std(h) e to each floating-point tensor h of an output, for several (draw, level) at once.

    The rows of the output are copies of the batch, one copy for each pair. Every sample gets the same e, which depends
    on the seed, the draw and the tensor's place in the output only. A tensor that occurs twice gets its noise once.

    Args:
        pairs: (draw, level) of each copy.
        seed: of the draws.
        batch: samples in a copy.

    Attributes:
        fired: whether the noise was added.
        constant: whether some sample's output had no spread, and so got no noise.
    """

    def __init__(self, pairs: list[tuple[int, float]], seed: int, batch: int) -> None:
        self.pairs, self.seed, self.batch = pairs, seed, batch
        self.fired = self.constant = False

    def __call__(self, site: Site, output: Any) -> Any:
        """The output with noise: new tensors, so that what the layer keeps is not written to."""
        axes: Iterator[tuple[int, int | None]] = iter(enumerate(site.axes))
        done: dict[int, torch.Tensor] = {}
        flat: list[bool] = []

        def add(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor
            place, axis = next(axes)
            if id(tensor) not in done:
                spread, noise = self._noise(tensor, axis, place, site.single)
                flat.append(bool((spread == 0).any()))
                done[id(tensor)] = tensor.clone().add_(noise)  # laid out in memory as it was
            return done[id(tensor)]

        noisy = map_tensors(output, add)
        self.fired, self.constant = True, self.constant or all(flat)
        return noisy

    def _noise(
        self, tensor: torch.Tensor, axis: int | None, place: int, single: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The spread of each sample, `(copies, batch, 1)`, and the noise, shaped like the tensor."""
        rows = tensor.unsqueeze(0) if axis is None else tensor.movedim(axis, 0)
        wide = torch.promote_types(tensor.dtype, torch.float32)
        copies, batch = len(self.pairs), 1 if axis is None else self.batch
        samples = rows.reshape(copies, batch, -1).to(wide)  # the batch axis may hold several rows of each sample
        spread = samples.abs() if single else samples.std(dim=2, unbiased=False, keepdim=True)
        drawn = {
            draw: self._draw(draw, place, samples.shape[2]) for draw in dict.fromkeys(draw for draw, _ in self.pairs)
        }
        e = torch.stack([drawn[draw] for draw, _ in self.pairs]).unsqueeze(1).to(samples)  # (copies, 1, n)
        level = torch.tensor([level for _, level in self.pairs]).reshape(-1, 1, 1).to(samples)
        noise = (level * spread * e).reshape(rows.shape).to(tensor.dtype)
        return spread, noise.squeeze(0) if axis is None else noise.movedim(0, axis)

    def _draw(self, draw: int, place: int, count: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed + 7919 * draw + 104729 * place)
        return torch.randn(count, generator=generator)
