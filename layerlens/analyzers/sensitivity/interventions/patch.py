"""Where in a model the difference between two inputs is carried: values of one run put into the other."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import nn

from layerlens.analyzers.common.features.basis_site import Sites
from layerlens.analyzers.common.measure_registry import measure
from layerlens.analyzers.common.parts.grid import KINDS, By
from layerlens.analyzers.common.samples import said_once
from layerlens.errors import InputError, TargetError, check_count, choose, warn
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.borrowed import borrowed, seed_torch
from layerlens.model.fastpath import layers_called
from layerlens.model.trees import describe
from layerlens.results import Explained
from layerlens.targets.target import Spec, Target, as_target

from ..model_run import ModelRun
from ..output_metrics import Readout
from .first_order import agreement, first_order_effects, largest
from .intervention_sites import find_intervention_sites
from .replacements import RecordedValues
from .results import PARTS, as_result, kind_of, null_values, part_name, warn_of_misleading
from .trials import Part, TrialRunner

Direction = Literal["denoise", "noise"]


@measure(
    question="matters_to_output",
    cost="F for each part, many in one run, and some 10 F; with count= F for those only, and 2 F + 1 B",
    needs="a second input of the same shape",
    source="Meng et al. 2022 (causal tracing); Vig et al. 2020; Wang et al. 2022",
)
def patch(
    model: nn.Module,
    x: Input,
    other: Input,
    layers: Sites = None,
    *,
    by: By = "layer",
    target: Spec = None,
    direction: Direction = "denoise",
    recovery: bool = True,
    count: int | None = None,
    screen: Literal["first_order"] | None = None,
    heads: int | None = None,
    null: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> Explained:
    """Measure how much of the difference between two inputs passes through one part of a model at a time.

    The model runs on x (corrupted) with the values that one part had on `other` (clean). With the scores S of the
    target, the recovery is (S_patched - S_x) / (S_other - S_x), each S a mean over the batch: 1 where the part carries
    the whole difference, 0 where it carries none, below 0 where it works against it (causal tracing: Meng et al. 2022,
    sec. 2.1; recovery as in Wang et al. 2022). This is denoising: it finds parts whose values suffice. With
    `direction="noise"` the model runs on `other` with values of x, and the share of the difference that is lost,
    (S_other - S_patched) / (S_other - S_x), finds parts whose values are needed.

    Many parts share a pass, each on its own copy of the batch: n parts cost n + 2 sqrt(n) + 8 forward passes, less
    where a pass over many rows is cheaper than many passes. With `count`, all parts are first ranked by the sum of
    g (v - a), with a their values, v those of the other run and g the gradient of the score (attribution patching,
    Nanda 2023), from two forward passes and one backward pass, and the first ones are measured; the result then says
    how well both orders agree.

    Of a `Basis` the parts are its features, whose codes are taken from the other run, and its error, as in `ablate`.

    Args:
        x: ... This is the corrupted input.
        other: the clean input, of the same shapes; texts must have the same number of tokens.
        layers: which layers, see `Selection`, or bases; None for every distinct activation, see `jacobian`, or, with
            more than 64 layers, for the repeated blocks (`"**"` for all), and for every attention with `by="head"`.
        by: the parts, as in `ablate`: `"layer"`, `"channel"`, `"head"`, `"position"`, `"unit"` or `"layer_position"`.
        target: the score, see `as_target`, best a contrast of the expected outputs of the clean and the corrupted
            input; None for the class predicted on `other`.
        direction: whether clean values go into the corrupted run, or corrupted ones into the clean run.
        recovery: False for the change of the score instead of shares.
        count: number of parts to measure, those with the largest first-order effects; None for all.
        screen: `"first_order"` computes first-order effects also when all parts are measured.
        heads: as in `ablate`.
        null: whether to move each part as far as its replacement does in a random direction too (4 draws): the root
            mean square of the effect, with the sign of the value.

    Returns:
        A `LayerProfile` for `by="layer"`, a `Matrix` of layers by positions for `"layer_position"`, else a `Ranking`.
        With two samples or more, `error` is the standard error over samples. The checks are `"change"`, `(parts,)`, in
        units of the score, `"per sample"`, `(parts, batch)`, in the same units, `"scores"`, `(2,)`, of x and of
        `other`, and with a screen `"first order"`, `(parts,)`, in units of the score, and `"rank correlation"` of
        both orders (Spearman). `settings["not_measured"]` counts the parts that a screen skipped,
        `settings["left_out"]` maps the layers that could not be measured to the reason.

    Raises:
        InputError: when the inputs differ in shape, or in their padding.
        LayerNotFound: when the selection matches no layer, or no attention, that can be measured.
        SelectionError, AxesUnknown: when a basis does not name one tensor of one call, or its units are unknown.
        OptionError: when an option is unknown or out of range.
        TargetError: when the target does not fit the output, or has the same score on both inputs.

    Warns:
        UserWarning: as `ablate`, and when the scores of both inputs hardly differ.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> _ = net[0].weight.data.copy_(torch.eye(2)), net[1].weight.data.copy_(torch.tensor([[3.0, 1.0]]))
        >>> found = patch(net, torch.zeros(1, 2), torch.ones(1, 2), "0", by="channel", target=0)
        >>> found.items, found.values.tolist()
        (('0 channel 0', '0 channel 1'), [0.75, 0.25])
    """
    choose("by", by, KINDS)
    choose("direction", direction, ("denoise", "noise"))
    if count is not None:
        check_count("count", count)
    if screen is not None:
        choose("screen", screen, ("first_order",))
    screened = screen is not None or count is not None
    with borrowed(model, grad=screened), torch.no_grad(), layers_called(), said_once() as passes:
        corrupted, clean = as_inputs(x), as_inputs(other)
        check_same_form(corrupted, clean)
        inputs, source = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
        run = ModelRun(model, inputs, forward, seed, progress)
        patched = _patch_parts(
            run, source, layers, target, Patching(by, direction, recovery, count, screened, heads, null)
        )
    names = [part_name(by, part) for part in patched.parts]
    warn_of_misleading("patch", patched.runner, layers is not None, patched.values, names)
    return _as_result(patched, passes)


@dataclasses.dataclass(frozen=True)
class Patching:
    """Options of `patch` that define what is measured."""

    by: By
    direction: Direction
    recovery: bool
    count: int | None
    screen: bool
    heads: int | None
    null: bool


@dataclasses.dataclass(frozen=True)
class Patched:
    """The parts that were patched."""

    options: Patching
    runner: TrialRunner
    target: Target
    parts: list[Part]
    changes: torch.Tensor  # (parts, batch)
    null: torch.Tensor | None  # (parts, draws)
    scores: tuple[torch.Tensor, torch.Tensor]  # of the input and of the source, (batch,) each
    first_order: torch.Tensor | None  # (parts,)
    all_parts: int  # number of parts before a screen

    @property
    def whole(self) -> torch.Tensor:
        """The whole difference of the scores, `(batch,)`; 1 where changes are not divided by it."""
        start, goal = self.scores
        return goal - start if self.options.recovery else torch.ones_like(start)

    @property
    def values(self) -> torch.Tensor:
        """Shares of the whole difference, `(parts,)`."""
        return self.changes.mean(dim=1) / self.whole.mean()

    @property
    def error(self) -> torch.Tensor | None:
        """The standard error over samples, `(parts,)`; None for one sample."""
        changes, whole = self.changes, self.whole
        if len(whole) < 2:
            return None
        # the delta method for a ratio of means: the spread of c - r d, over |d|
        spread = (changes - self.values.unsqueeze(1) * whole if self.options.recovery else changes).std(dim=1)
        error: torch.Tensor = spread / len(whole) ** 0.5 / whole.mean().abs()
        return error


def _patch_parts(run: ModelRun, source: Inputs, layers: Sites, target: Spec, options: Patching) -> Patched:
    """Run on the input with the values of each part on the source."""
    survey = find_intervention_sites(run, layers, options.by, options.heads)
    seed_torch(run.seed)
    output = source.run(run.model, run.forward)
    resolved = (
        as_target(target).on(run.inputs).resolve(output if options.direction == "denoise" else survey.output)
    )  # on the clean output
    rows = torch.arange(run.batch)
    start, goal = resolved(survey.output, rows).double().cpu(), resolved(output, rows).double().cpu()  # (batch,)
    if options.recovery:
        _check_gap(start, goal, resolved)
    readout = Readout("change", resolved)
    runner = TrialRunner(run, readout, survey, "patching", survey.copies)
    every = [Part(site, number) for site in survey.sites for number in range(site.grid.size)]
    replacement = RecordedValues(run, lambda: [source], [rows])
    effects = first_order_effects(run, survey.sites, replacement, 1, readout) if options.screen else None
    parts = every if effects is None else [every[index] for index in largest(effects, options.count)]
    effects = None if effects is None else effects[largest(effects, options.count)]
    groups: list[tuple[Part, ...]] = [(part,) for part in parts]
    changes = runner(groups, replacement, 1).squeeze(1)  # (parts, batch)
    null = runner.null_changes(groups, replacement) if options.null else None
    kept = runner.measured(groups)
    return Patched(
        options,
        runner,
        resolved,
        [parts[index] for index in kept],
        changes[kept],
        None if null is None else null[kept],
        (start, goal),
        None if effects is None else effects[kept],
        len(every),
    )


def _as_result(patched: Patched, passes: dict[str, str]) -> Explained:
    """Return values and errors with their meaning, in the result that fits the kind of part."""
    options, runner, label = patched.options, patched.runner, patched.target.label
    values, whole = patched.values, patched.whole.mean()
    columns: dict[str, Any] = {
        "values": values,
        "error": patched.error,
        "null": None if patched.null is None else null_values(patched.null / whole, values, signed=True),
    }
    scores = patched.scores if options.direction == "denoise" else patched.scores[::-1]
    share = f"share of the difference {'recovered' if options.direction == 'denoise' else 'lost'}"
    fields: dict[str, Any] = {
        "quantity": share if options.recovery else "change of the score",
        "units": "1" if options.recovery else "score",
        "signed": True,
        "method": f"patching ({options.direction}), {label}",
        "settings": {
            "by": options.by,
            "direction": options.direction,
            "target": label,
            "recovery": options.recovery,
            "count": options.count,
            "not_measured": 0 if options.count is None else patched.all_parts - len(patched.parts),
            "at_once": runner.copies,
            "seed": runner.run.seed,
            "left_out": runner.left_out,
            **passes,
        },
        "checks": {
            "change": patched.changes.mean(dim=1),
            "per sample": patched.changes,
            "scores": torch.stack([score.mean() for score in scores]),
            **agreement(patched.first_order, values * whole, signed=True),
        },
        "explanation": _explanation(options, kind_of(options.by, runner.survey.sites)),
    }
    return as_result(options.by, patched.parts, columns, fields)


def check_same_form(x: Inputs, other: Inputs) -> None:
    """Check that two inputs have the same tensors, shapes and padding.

    Raises:
        InputError: when they differ.
    """
    ours, theirs = x.tensors(), other.tensors()
    if list(ours) != list(theirs):
        raise InputError(f"x and other must have the same parts, got {', '.join(ours)} and {', '.join(theirs)}.")
    for name, tensor in ours.items():
        other_tensor = theirs[name]
        if tensor.shape != other_tensor.shape:
            counts = ""
            if not tensor.is_floating_point() and tensor.ndim == other_tensor.ndim == 2:
                counts = f": {tensor.shape[1]} tokens and {other_tensor.shape[1]}. Choose words of equal token counts"
            raise InputError(
                "x and other must have the same shape, to put values of one run into the other. Input "
                f"{name!r} is {describe(tensor)} and {describe(other_tensor)}{counts}."
            )
        if name.endswith(("attention_mask", "padding_mask")) and not torch.equal(tensor, other_tensor):
            lengths = [
                part.long().flatten(1).sum(dim=1).tolist() if part.ndim > 1 else part for part in (tensor, other_tensor)
            ]
            raise InputError(
                f"x and other must have the same padding, so that positions correspond: {name!r} holds "
                f"{lengths[0]} and {lengths[1]} tokens by sample."
            )


def _check_gap(start: torch.Tensor, goal: torch.Tensor, target: Target) -> None:
    """Check that there is a difference to recover.

    Raises:
        TargetError: when there is none.
    """
    size, gap = float(torch.cat([start, goal]).abs().max()), goal - start
    if not bool(gap.isfinite().all()) or float(gap.mean().abs()) <= 1e-9 * size:
        raise TargetError(
            f"the score {target.label!r} is {float(start.mean()):.4g} on one input and {float(goal.mean()):.4g} on the "
            "other: there is no difference to recover. Give a target in which they differ, such as contrast(a, b), or "
            "recovery=False."
        )
    if float(gap.mean().abs()) < max(1e-3 * size, 0.1 * float(gap.square().mean().sqrt())):
        warn(
            f"patch: the scores of both inputs hardly differ ({float(gap.mean()):.3g}), so shares of that "
            "difference are mostly noise. Give a target in which they differ more, or recovery=False.",
        )


def _explanation(options: Patching, kind: str) -> tuple[str, str]:
    part, denoise, recovery = PARTS[kind], options.direction == "denoise", options.recovery
    run, source = ("corrupted", "clean") if denoise else ("clean", "corrupted")
    verb = "recovered" if denoise else "lost"
    change = (
        f"which share of the difference between both scores is {verb}" if recovery else "how much the score changes"
    )
    whole = ": 1 would be the whole difference of the two inputs" if recovery else ""
    return (
        f"Each value says {change} when one {part} of the {run} run gets the values that it has in the {source} "
        f"run{whole}."
    ), (
        "It is about these two inputs and this score, and values do not add up: what both inputs have in common does "
        f"not show, nor does a {'needed part that does not suffice' if denoise else 'part that others can replace'}."
    )
