"""How much the output depends on each layer: the answer of the output to noise at that layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from ...borrow import borrowed
from ...errors import OptionError, choose
from ...inputs import Inputs, as_inputs
from ...layers import Selection
from ...nested import map_tensors
from ...probe import Probe
from ...progress import track
from ...results import LayerProfile
from ...target import main_output
from .options import check_count, warn_left_out
from .sites import Site, by_row, copied_rows, layers_called, survey, taps

Metric = Literal["auto", "kl", "flip", "relative_change"]

UNITS = {"kl": "nats", "flip": "share of samples", "relative_change": "1"}
QUANTITIES = {
    "kl": "divergence of the output under noise",
    "flip": "flipped decisions under noise",
    "relative_change": "relative change of the output under noise",
}


def noise_response(
    model: nn.Module,
    x: Any,
    layers: Selection = None,
    *,
    levels: Sequence[float] = (0.1, 0.5, 1.0),
    draws: int = 8,
    metric: Metric = "auto",
    seed: int = 0,
    progress: bool | None = None,
    forward: Callable[..., Any] | None = None,
) -> LayerProfile:
    """How much the model's output changes when Gaussian noise is added at one layer at a time.

    At a layer that returned h the model goes on with h + level std(h) e, e ~ N(0, I), where std(h) is that of each
    sample's own values (their magnitude, for a layer with one number per sample). Metrics: `"kl"`,
    KL(softmax(y) || softmax(y')) of the output without and with noise; `"flip"`, the share of samples whose largest
    output is another one; `"relative_change"`, ||y' - y|| / ||y||. Of a nested layer output every floating-point tensor
    gets noise. All samples get the same draws, so that a batch gives what its samples give alone.

    Args:
        model: any module; it is run in eval mode.
        x: its input, `(batch, ...)`: a tensor, a tuple of arguments, or a dict of keyword arguments.
        layers: which layers, as in `layerlens.layers.Selection`; None for every distinct activation, see `jacobian`.
        levels: standard deviations of the noise, relative to that of the layer's output.
        draws: of the noise, for each layer and level.
        metric: `"auto"` is `"kl"` for an output `(batch, classes)`, and `"relative_change"` for any other.
        seed: of the noise, and for models that draw numbers.
        progress: whether to show a bar; None when stderr is a terminal and it takes long.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        A `LayerProfile` with values `(layers, levels)`: means over draws and batch, with the standard error over draws;
        `settings["left_out"]` says which layers could not be measured, and why.

    Raises:
        InputError: when the input cannot be read.
        LayerNotFound: when the selection matches no layer that can be measured.
        OptionError: when an option is out of range, or the metric does not fit the output.
        TargetError: when the model returns no floating-point tensor.

    Warns:
        UserWarning: when there is one draw only, when layers had to be left out, or when nothing responds.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> noise_response(net, torch.ones(1, 2), levels=(0.0,)).values.tolist()
        [[0.0], [0.0], [0.0]]
    """
    check_count("draws", draws)
    choose("metric", metric, ("auto", *UNITS))
    if not levels or not all(0 <= level < float("inf") for level in levels):
        raise OptionError(f"levels must be numbers of at least 0, one or more, got {levels!r}.")
    with borrowed(model, grad=False), layers_called():
        inputs = as_inputs(x)
        found = survey(model, inputs, layers, forward, seed=seed)
        kind = _metric_for(main_output(found.output), inputs.batch, metric)
        responses = torch.zeros(len(found.sites), len(levels), draws, inputs.batch, dtype=torch.float64)
        parts = torch.split(torch.arange(draws), found.copies(draws))
        for part in parts:  # the clean output is made in the same company: a model may draw numbers of its own
            rows = inputs.rows(copied_rows(inputs.batch, len(part)))
            clean = _output(model, rows, forward, seed, None, lambda site, output: output)
            for index, site in enumerate(track(found.sites, "noise response", enabled=progress)):
                for column, level in enumerate(levels):
                    noise = _Noise(level, part.tolist(), seed, inputs.batch)
                    noisy = _output(model, rows, forward, seed, site, noise)
                    changed = _change(kind, clean, noisy).reshape(len(part), inputs.batch)
                    responses[index, column, part] = changed
    by_draw = responses.mean(dim=3)  # (layers, levels, draws)
    values = by_draw.mean(dim=2)
    _warn(found.left_out, values, draws, layers is not None)
    return LayerProfile(
        quantity=QUANTITIES[kind],
        layers=tuple(site.name for site in found.sites),
        values=values,
        units=UNITS[kind],
        signed=False,
        method=f"noise at one layer at a time, {draws} draw{'s' * (draws > 1)}, {kind}",
        settings={
            "levels": tuple(float(level) for level in levels),
            "draws": draws,
            "metric": kind,
            "seed": seed,
            "left_out": found.left_out,
        },
        series=tuple(f"noise {level:g} std" for level in levels),
        error=by_draw.std(dim=2) / draws**0.5 if draws > 1 else None,
        checks={"per sample": responses.mean(dim=2)},
    )


class _Noise:
    """Adds the noise of some draws to what a site returned."""

    def __init__(self, level: float, draws: list[int], seed: int, batch: int) -> None:
        self.level, self.draws, self.seed, self.batch = level, draws, seed, batch

    def __call__(self, site: Site, output: Any) -> Any:
        axes = iter(site.axes)
        self.tensors = 0
        return map_tensors(
            output, lambda tensor: self._add(site, tensor, axes) if tensor.is_floating_point() else tensor
        )

    def _add(self, site: Site, tensor: torch.Tensor, axes: Any) -> torch.Tensor:
        axis = next(axes)
        self.tensors += 1
        if not self.level:
            return tensor.clone()
        if axis is None:
            generator = torch.Generator().manual_seed(self.seed + 7919 * self.draws[0] + self.tensors)
            e = torch.randn(tensor.shape, generator=generator).to(tensor)
            return tensor + self.level * _spread(tensor.reshape(1, -1), site.single)[0] * e
        rows = tensor.movedim(axis, 0)
        count = len(rows) // len(self.draws)  # rows of one copy: the batch, or a multiple of it
        e = torch.stack([self._draw(draw, rows.shape[1:], count) for draw in self.draws]).flatten(0, 1).to(tensor)
        spread = _spread(rows.reshape(len(rows), -1), site.single).reshape(-1, *[1] * (rows.ndim - 1))
        return (rows + self.level * spread * e).movedim(0, axis)

    def _draw(self, draw: int, shape: torch.Size, count: int) -> torch.Tensor:
        """One draw, the same for every sample of the batch: `(count, ...)`."""
        generator = torch.Generator().manual_seed(self.seed + 7919 * draw + self.tensors)
        per_sample = count // self.batch
        return torch.randn((per_sample, *shape), generator=generator).repeat(self.batch, *[1] * len(shape))


def _spread(rows: torch.Tensor, single: bool) -> torch.Tensor:
    """The standard deviation of each row's numbers, `(rows,)`; the magnitude where there is one only."""
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    spread: torch.Tensor = wide.abs().mean(dim=1) if single else wide.std(dim=1, unbiased=False)
    return spread.to(rows.dtype)


def _output(
    model: nn.Module,
    inputs: Inputs,
    forward: Callable[..., Any] | None,
    seed: int,
    site: Site | None,
    function: Callable[[Site, Any], Any],
) -> torch.Tensor:
    """The model's output with `function` in the place of what a site returned."""
    torch.manual_seed(seed)
    with Probe(model, (), edits={} if site is None else taps([site], function)):
        return main_output(inputs.run(model, forward))


def _metric_for(output: torch.Tensor, batch: int, metric: Metric) -> str:
    """The metric to use, checked against the output."""
    classes = output.ndim == 2 and output.shape[0] == batch and output.shape[1] > 1
    if metric == "auto":
        return "kl" if classes else "relative_change"
    if metric != "relative_change" and not classes:
        raise OptionError(
            f"metric {metric!r} needs an output (batch, classes); this one is {tuple(output.shape)}. "
            "metric='relative_change' fits any output."
        )
    return metric


def _change(kind: str, clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    """The metric of each row, `(rows,)`, float64 on the main processor."""
    clean, noisy = clean.double().cpu(), noisy.double().cpu()
    if kind == "flip":
        return (clean.argmax(dim=1) != noisy.argmax(dim=1)).double()
    if kind == "kl":
        before, after = clean.log_softmax(dim=1), noisy.log_softmax(dim=1)
        return (before.exp() * (before - after)).sum(dim=1).clamp_min(0)
    difference, size = by_row(noisy - clean, 0, len(clean)).norm(dim=1), by_row(clean, 0, len(clean)).norm(dim=1)
    return torch.where(difference == 0, 0.0, difference / size)


def _warn(left_out: dict[str, str], values: torch.Tensor, draws: int, explicit: bool) -> None:
    warn_left_out("noise_response", left_out, explicit)
    if draws == 1:
        warnings.warn("noise_response: one draw gives no standard error. Use draws=8.", stacklevel=3)
    if not bool(torch.isfinite(values).all()):
        warnings.warn("noise_response: some values are not finite: the output is zero or overflows.", stacklevel=3)
