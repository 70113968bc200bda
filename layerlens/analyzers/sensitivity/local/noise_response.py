"""How much the output depends on each layer: how it responds to noise at that layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.measured_calls import MeasuredCall, copied_rows, edits_at, survey
from layerlens.analyzers.common.held_inputs import held_input
from layerlens.analyzers.common.measure_registry import measure
from layerlens.analyzers.common.messages import listed, warn_left_out
from layerlens.analyzers.common.null_model import shuffled
from layerlens.analyzers.common.samples import said_once
from layerlens.errors import LayerNotFound, OptionError, check_count, warn
from layerlens.inputs.inputs import Forward, Hold, Input
from layerlens.model.borrowed import borrowed, seed_torch
from layerlens.model.fastpath import layers_called
from layerlens.model.layers import Selection
from layerlens.model.placement import GATHERED, refuse_parts
from layerlens.model.trees import map_tensors
from layerlens.probes.made_edits import Edit
from layerlens.probes.probe import Probe
from layerlens.progress import track
from layerlens.results import LayerProfile
from layerlens.targets.target import Spec

from ..model_run import ModelRun
from ..output_metrics import QUANTITIES, Metric, Readout, choose_readout
from ..stepped_runs import SteppedRun, stepped_leaves


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
    hold: Hold = None,
    forward: Forward | None = None,
) -> LayerProfile:
    """Measure how much the model's output changes when Gaussian noise is added at one layer at a time.

    After a call of a layer that returned h, the model continues with h + level std(h) e, e ~ N(0, I), where std(h) is
    the standard deviation of each sample's own values (their magnitude, for a layer with one number per sample); all
    other calls stay as they are. With y and y' the output without and with noise, the metrics are

    - `"kl"`: KL(p || p') = sum of p log(p / p'), p = softmax(y), or y itself where it is a distribution;
    - `"flip"`: the share of samples whose largest output is another one;
    - `"relative_change"`: ||y' - y|| / ||y||;
    - `"change"`: ||y' - y||.

    Every floating-point tensor of a nested layer output gets noise relative to its own spread (of an LSTM the sequence
    and both states). All samples and levels get the same draws e, so a batch gives what its samples give alone and
    levels can be compared. The model runs once per layer, level and draw, many of these at once.

    Args:
        layers: which layers, see `Selection`; None for every distinct activation, see `jacobian`.
        levels: standard deviations of the noise, relative to the spread of the layer's output; the response at 0 is 0.
        draws: number of draws of the noise, for each layer and level.
        metric: `"auto"` is `"kl"` for an output `(batch, classes)`, `"change"` with a target, and `"relative_change"`
            for any other.
        target: a score to watch instead of the whole output, see `as_target`.

    Returns:
        A `LayerProfile` with values `(layers, levels)`: means over draws and batch, with the standard error over draws.
        Its check is `"per sample"`, `(layers, levels, batch)`; `settings["left_out"]` maps the layers that could not be
        measured to the reason.

    Raises:
        InputError: when the input cannot be read.
        LayerNotFound: when the selection matches no layer that can be measured.
        OptionError: when an option is out of range, or the metric does not fit the output.
        TargetError: when the output has no batch axis and no target is given, or the target does not fit it.

    Warns:
        UserWarning: when there is only one draw, layers had to be left out, a layer's output is constant across a
            sample (and so gets no noise), or values are not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> profile = noise_response(net, torch.tensor([[1.0, -1.0]]), "0", levels=(0.0, 1.0))
        >>> profile.series, profile.values.shape, float(profile.values[0, 0])
        (('noise 0 std', 'noise 1 std'), torch.Size([1, 2]), 0.0)
    """
    check_count("draws", draws)
    sizes = _levels(levels)
    with borrowed(model, grad=False), layers_called(), said_once() as passes:
        refuse_parts(model, "noise_response", GATHERED)
        run = ModelRun(model, held_input(model, x, hold, forward), forward, seed, progress)
        clean = survey(model, run.inputs, layers, forward, seed=seed)
        readout = choose_readout(metric, target, clean.output, run.inputs)
        copies = SteppedRun(run, stepped_leaves(run), "noise").together(clean.copies(len(sizes) * draws))
        noisy_runs = _NoisyRuns(run, readout, sizes, draws, copies)
        left_out, constant = dict(clean.left_out), list[str]()
        by_site: dict[str, torch.Tensor] = {}
        for site in track(clean.sites, "noise response", enabled=progress):
            response, is_constant = noisy_runs(site)
            if response is None:
                left_out[site.name] = "did not run the same way a second time: the route of this model changes"
                continue
            constant += [site.name] * is_constant
            by_site[site.name] = response
        if not by_site:
            raise LayerNotFound(f"none of the {len(clean.sites)} layer(s) ran the same way a second time.")
        measured = [site for site in clean.sites if site.name in by_site]
        null_values = _null_values(noisy_runs, measured) if null else None
    responses = torch.stack(list(by_site.values()))  # (layers, levels, draws, batch)
    by_draw = responses.mean(dim=3)
    names = tuple(by_site)
    _warn(names, by_draw, left_out, constant, layers is not None)
    quantity, units = QUANTITIES[readout.metric]
    return LayerProfile(
        quantity=quantity,
        layers=names,
        values=by_draw.mean(dim=2),
        units=units if readout.target is None else "score",
        signed=False,
        method=f"noise at one layer at a time, {draws} draw{'s' * (draws > 1)}, {readout.text}",
        settings={
            "levels": tuple(sizes),
            "draws": draws,
            "metric": readout.metric,
            "target": None if readout.target is None else readout.target.label,
            "seed": seed,
            "left_out": left_out,
            **passes,
        },
        series=tuple(f"noise {level:g} std" for level in sizes),
        error=by_draw.std(dim=2) / draws**0.5 if draws > 1 else None,
        null=null_values,
        null_name="with shuffled weights",
        checks={"per sample": responses.mean(dim=2)},
        explanation=(
            f"Each value is the mean {quantity} ({units if readout.target is None else 'units of the score'}) when "
            "noise of the given size, relative to the layer's own spread, is added at this layer alone: the larger, "
            "the more the output depends on it.",
            "It does not say what the layer does, nor that the model needs it: noise moves a layer to values it never "
            "had in training, and later layers can compensate (see ablate).",
        ),
    )


def _null_values(noisy_runs: _NoisyRuns, sites: list[MeasuredCall]) -> torch.Tensor:
    """Measure the model with shuffled weights, `(layers, levels)`; NaN where it takes another route."""
    run = noisy_runs.run
    shuffled_run = dataclasses.replace(run, forward=shuffled(run.model, run.forward, run.seed))
    shuffled_runs = dataclasses.replace(noisy_runs, run=shuffled_run, clean={})
    responses = [shuffled_runs(site)[0] for site in track(sites, "noise response, null", enabled=run.progress)]
    missing = torch.full((len(noisy_runs.levels),), float("nan"), dtype=torch.float64)
    return torch.stack([missing if response is None else response.mean(dim=(1, 2)) for response in responses])


@dataclasses.dataclass
class _NoisyRuns:
    """Runs with noise, one site at a time."""

    run: ModelRun
    readout: Readout
    levels: list[float]
    draws: int
    copies: int
    clean: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)

    def __call__(self, site: MeasuredCall) -> tuple[torch.Tensor | None, bool]:
        """Return `(levels, draws, batch)`, None when the site did not run; and whether its output is constant."""
        batch = self.run.batch
        response = torch.zeros(len(self.levels), self.draws, batch, dtype=torch.float64)
        places = [(place, draw) for draw in range(self.draws) for place, level in enumerate(self.levels) if level]
        at_once = 1 if None in site.axes else self.copies  # one draw at a time for an output that all rows share
        constant = False
        for start in range(0, len(places), at_once):
            part = places[start : start + at_once]
            if (
                len(part) not in self.clean
            ):  # run with as many copies, so that what does not respond is equal bit for bit
                self.clean[len(part)] = self._output(len(part), {})
            noise = Noise([(draw, self.levels[place]) for place, draw in part], self.run.seed, batch)
            noisy = self._output(len(part), edits_at([site], noise))
            if not noise.added:
                return None, False
            constant |= noise.constant
            change = self.readout.change(self.clean[len(part)], noisy).reshape(len(part), batch)
            for (place, draw), values in zip(part, change, strict=True):
                response[place, draw] = values
        return response, constant

    def _output(self, copies: int, edits: dict[str, Edit]) -> torch.Tensor:
        rows = copied_rows(self.run.batch, copies)
        inputs = self.run.inputs.rows(rows)
        seed_torch(self.run.seed)
        with Probe(self.run.model, (), edits=edits):
            return self.readout(inputs.run(self.run.model, self.run.forward), rows)


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
    """Warn of what would mislead."""
    warn_left_out("noise_response", left_out, explicit)
    if by_draw.shape[2] == 1:
        warn("noise_response: one draw gives no standard error. Use draws=8.")
    if constant:
        warn(
            f"noise_response: the output of {listed(constant)} is constant across a sample, so it gets no noise "
            "relative to its spread: a value of 0 does not say that the layer is not used.",
        )
    not_finite = [
        name for name, finite in zip(names, by_draw.isfinite().all(dim=(1, 2)).tolist(), strict=True) if not finite
    ]
    if not_finite:
        warn(
            f"noise_response: the values of {listed(not_finite)} are not finite: the output is zero or overflows "
            "there.",
        )


class Noise:
    """Adds level std(h) e to each floating-point tensor h of an output, for several (draw, level) at once.

    The rows of the output are copies of the batch, one copy for each pair. Every sample gets the same e, which depends
    only on the seed, the draw and the tensor's position in the output. A tensor that occurs twice gets its noise once.

    Args:
        pairs: draw and level of each copy.
        seed: seed of the draws.
        batch: number of samples in a copy.

    Attributes:
        added: whether the noise was added.
        constant: whether some sample's output had no spread, and so got no noise.
    """

    def __init__(self, pairs: list[tuple[int, float]], seed: int, batch: int) -> None:
        self.pairs, self.seed, self.batch = pairs, seed, batch
        self.added = self.constant = False

    def __call__(self, site: MeasuredCall, output: Any) -> Any:
        """Return the output with noise in new tensors, so that what the layer holds is not written to."""
        axes: Iterator[tuple[int, int | None]] = iter(enumerate(site.axes))
        noisy_tensors: dict[int, torch.Tensor] = {}
        zero_spread: list[bool] = []

        def add(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor
            place, axis = next(axes)
            if id(tensor) not in noisy_tensors:
                spread, noise = self._noise(tensor, axis, place, site.single)
                zero_spread.append(bool((spread == 0).any()))
                noisy_tensors[id(tensor)] = tensor.clone().add_(noise)  # with the same memory layout
            return noisy_tensors[id(tensor)]

        noisy = map_tensors(output, add)
        self.added, self.constant = True, self.constant or all(zero_spread)
        return noisy

    def _noise(
        self, tensor: torch.Tensor, axis: int | None, place: int, single: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the spread of each sample, `(copies, batch, 1)`, and the noise, shaped like the tensor."""
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
