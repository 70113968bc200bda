"""Where in a model the difference between two inputs is carried: values of one run put into the other."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from layerlens.analyzers.common.calls.fastpath import layers_called
from layerlens.analyzers.common.measure_registry import measure
from layerlens.errors import InputError, LayerNotFound, TargetError, choose, warn
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.model.trees import describe
from layerlens.results import Explained
from layerlens.targets.target import Spec, Target, as_target

from ..output_metrics import Readout
from .ablate import NULL_DRAWS
from .intervention_sites import find
from .parts import KINDS, By
from .replacements import RandomDirection, Recorded
from .results import PARTS, named, result, size_of, warn_of_misleading
from .trials import Part, Runner, Trial


@measure(
    question="matters_to_output",
    cost="F for each part, many in one run, and some 10 F",
    needs="a second input of the same shape",
    source="Meng et al. 2022 (causal tracing); Vig et al. 2020; Wang et al. 2022",
)
def patch(
    model: nn.Module,
    x: Input,
    other: Any,
    layers: Selection = None,
    *,
    by: By = "layer",
    target: Spec = None,
    direction: Literal["denoise", "noise"] = "denoise",
    recovery: bool = True,
    heads: int | None = None,
    null: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> Explained:
    """How much of the difference between two inputs passes through one part of a model at a time.

    The model runs on x (corrupted) with the values that one part had on `other` (clean). With the scores S of the
    target, the recovery is (S_patched - S_x) / (S_other - S_x), each S a mean over the batch: 1 where the part carries
    the whole difference, 0 where it carries none, below 0 where it works against it (causal tracing: Meng et al. 2022,
    sec. 2.1; recovery as in Wang et al. 2022). This is denoising: it finds parts whose values suffice. With
    `direction="noise"` the model runs on `other` with values of x, and the share of the difference that is lost,
    (S_other - S_patched) / (S_other - S_x), finds parts whose values are needed.

    Many parts share a pass, each on its own copy of the batch: n parts cost n + 2 sqrt(n) + 8 forward passes, less
    where a pass over many rows is cheaper than many passes.

    Args:
        model: any module; it is run in eval mode.
        x: the corrupted input, `(batch, ...)`: a tensor, a tuple of arguments, or a dict of keyword arguments.
        other: the clean input, of the same shapes; texts must have as many tokens.
        layers: which layers, as in `Selection`; None for every distinct activation, see `jacobian`,
            and for every attention with `by="head"`.
        by: the parts, as in `ablate`: `"layer"`, `"channel"`, `"head"`, `"position"`, `"unit"` or `"layer_position"`.
        target: the score, as in `layerlens.as_target`, best a contrast of what the clean and the corrupted input
            should give; None for the class predicted on `other`.
        direction: whether clean values go into the corrupted run, or corrupted ones into the clean run.
        recovery: False for the plain change of the score in place of shares.
        heads: as in `ablate`.
        null: also move each part as far as its replacement does in a random direction (4 draws): the root of the mean
            square of what that does, on the value's side of zero.
        seed: of the directions, and for models that draw numbers.
        progress: whether to show a bar; None when stderr is a terminal and it takes long.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        A `LayerProfile` for `by="layer"`, a `Matrix` of layers by positions for `"layer_position"`, else a `Ranking`.
        With two samples or more, `error` is the standard error over samples. The checks are `"change"`, `(parts,)`, in
        units of the score, `"per sample"`, `(parts, batch)`, likewise, and `"scores"`, `(2,)`, those of x and of
        `other`. `settings["left_out"]` says which layers could not be measured, and why.

    Raises:
        InputError: when the inputs differ in shape, or in which places are padding.
        LayerNotFound: when the selection matches no layer, or no attention, that can be measured.
        OptionError: when an option is unknown or out of range.
        TargetError: when the target does not fit the output, or has the same score on both inputs.

    Warns:
        UserWarning: as `ablate`, and when the scores of both inputs are hardly apart.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> _ = net[0].weight.data.copy_(torch.eye(2)), net[1].weight.data.copy_(torch.tensor([[3.0, 1.0]]))
        >>> found = patch(net, torch.zeros(1, 2), torch.ones(1, 2), "0", by="channel", target=0)
        >>> found.items, found.values.tolist()
        (('0 channel 0', '0 channel 1'), [0.75, 0.25])
    """
    choose("by", by, KINDS)
    choose("direction", direction, ("denoise", "noise"))
    with borrowed(model, grad=False), layers_called():
        corrupted, clean = as_inputs(x), as_inputs(other)
        _check_alike(corrupted, clean)
        into, source_of = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
        found = find(model, into, layers, by, heads, forward, seed)
        torch.manual_seed(seed)
        there = source_of.run(model, forward)
        aim = _aim(target, found.output if direction == "noise" else there)
        rows = torch.arange(into.batch)
        start, goal = aim(found.output, rows).double().cpu(), aim(there, rows).double().cpu()  # (batch,)
        whole = goal - start if recovery else torch.ones_like(start)
        if recovery:
            _check_gap(start, goal, aim)
        read = Readout("change", aim)
        runner = Runner(model, into, forward, read, found, seed, progress, "patching", found.copies)
        parts = [Part(seam, number) for seam in found.seams for number in range(seam.grid.size)]
        source = Recorded(model, lambda: [source_of], [rows], forward, seed)
        changes = runner([Trial((part,)) for part in parts], source)  # (parts, batch)
        chance = None
        if null:
            wild = RandomDirection(source, into.batch, seed)
            trials = [Trial((part,), draw) for part in parts for draw in range(NULL_DRAWS)]
            chance = runner(trials, wild).reshape(len(parts), NULL_DRAWS, -1).mean(dim=2)
    left_out = {**found.left_out, **runner.failed}
    made = [index for index, part in enumerate(parts) if part.seam.name not in runner.failed]
    if not made:
        reasons = "; ".join(f"{name} {why}" for name, why in list(left_out.items())[:4])
        raise LayerNotFound(f"no part of the selected layers could be replaced: {reasons}.")
    changes, parts = changes[made], [parts[index] for index in made]
    change = changes.mean(dim=1)
    values = change / whole.mean()
    # the delta method for a ratio of means: the spread of c - r d, over |d|
    spread = (changes - values.unsqueeze(1) * whole if recovery else changes).std(dim=1) if len(whole) > 1 else None
    error = None if spread is None else spread / len(whole) ** 0.5 / whole.mean().abs()
    columns: dict[str, Any] = {
        "values": values,
        "error": error,
        "null": None if chance is None else size_of(chance[made] / whole.mean(), values, signed=True),
    }
    denoise = direction == "denoise"
    verb = "recovered" if denoise else "lost"
    shared: dict[str, Any] = {
        "quantity": f"share of the difference {verb}" if recovery else "change of the score",
        "units": "1" if recovery else "score",
        "signed": True,
        "method": f"patching ({direction}), {aim.label}",
        "settings": {
            "by": by,
            "direction": direction,
            "target": aim.label,
            "recovery": recovery,
            "at_once": runner.copies,
            "seed": seed,
            "left_out": left_out,
        },
        "checks": {
            "change": change,
            "per sample": changes,
            "scores": torch.stack([score.mean() for score in ((start, goal) if denoise else (goal, start))]),
        },
        "explanation": _explanation(by, denoise, recovery),
    }
    warn_of_misleading("patch", found, left_out, layers is not None, values, [named(by, part) for part in parts])
    return result(by, parts, columns, shared)


def _check_alike(x: Inputs, other: Inputs) -> None:
    """See that two inputs have the same tensors, shapes and padding."""
    ours, theirs = x.tensors(), other.tensors()
    if list(ours) != list(theirs):
        raise InputError(f"x and other must have the same parts, got {', '.join(ours)} and {', '.join(theirs)}.")
    for name, tensor in ours.items():
        twin = theirs[name]
        if tensor.shape != twin.shape:
            counts = ""
            if not tensor.is_floating_point() and tensor.ndim == twin.ndim == 2:
                counts = f": {tensor.shape[1]} tokens and {twin.shape[1]}. Choose words of as many tokens each"
            raise InputError(
                "x and other must have the same shape, for values to be put from one run into the other. Input "
                f"{name!r} is {describe(tensor)} and {describe(twin)}{counts}."
            )
        if name.endswith(("attention_mask", "padding_mask")) and not torch.equal(tensor, twin):
            lengths = [part.long().flatten(1).sum(dim=1).tolist() if part.ndim > 1 else part for part in (tensor, twin)]
            raise InputError(
                f"x and other must be padded alike, for positions to stand for the same places: {name!r} holds "
                f"{lengths[0]} and {lengths[1]} tokens by sample."
            )


def _aim(target: Spec, clean: Any) -> Target:
    """The score, chosen on the clean output."""
    return as_target(target).resolve(clean)


def _check_gap(start: torch.Tensor, goal: torch.Tensor, aim: Target) -> None:
    """See that there is a difference to pass on."""
    size, gap = float(torch.cat([start, goal]).abs().max()), goal - start
    if not bool(gap.isfinite().all()) or float(gap.mean().abs()) <= 1e-9 * size:
        raise TargetError(
            f"the score {aim.label!r} is {float(start.mean()):.4g} on one input and {float(goal.mean()):.4g} on the "
            "other: there is no difference to recover. Give a target in which they differ, such as contrast(a, b), or "
            "recovery=False."
        )
    if float(gap.mean().abs()) < max(1e-3 * size, 0.1 * float(gap.square().mean().sqrt())):
        warn(
            f"patch: the scores of both inputs are hardly apart ({float(gap.mean()):.3g}), so shares of that "
            "difference are mostly noise. Give a target in which they differ more, or recovery=False.",
        )


def _explanation(by: By, denoise: bool, recovery: bool) -> tuple[str, str]:
    part = PARTS[by]
    run, source = ("corrupted", "clean") if denoise else ("clean", "corrupted")
    verb = "recovered" if denoise else "lost"
    says = f"which share of the difference between both scores is {verb}" if recovery else "how much the score changes"
    whole = ": 1 would be all that sets the two inputs apart" if recovery else ""
    return (
        f"Each value says {says} when one {part} of the {run} run gets the values that it has in the {source} "
        f"run{whole}."
    ), (
        "It is about these two inputs and this score, and values do not add up: what both inputs have in common shows "
        f"nothing, and a {'needed part that does not suffice' if denoise else 'part that others stand in for'} neither."
    )
