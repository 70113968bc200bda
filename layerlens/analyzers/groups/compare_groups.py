"""How groups of samples differ: in the activations of every layer, and in where the model looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.errors import InputError, check_count, check_seed, warn
from layerlens.inputs.batches import Samples
from layerlens.inputs.inputs import Forward, Inputs, as_inputs
from layerlens.model.layers import Selection
from layerlens.results import GroupComparison, GroupEffects, LayerProfile
from layerlens.targets.target import Spec, as_target

from .gather import Gathered, Gatherer
from .permutation import Effect, Shuffles, corrected
from .separation import hold_out, separation

ENOUGH = 5
"""Samples of both groups that a stratum needs to be compared by itself."""


def compare_groups(
    model: nn.Module,
    data: Samples,
    groups: Any = None,
    layers: Selection = None,
    *,
    target: Spec = None,
    method: str | None = "auto",
    options: dict[str, Any] | None = None,
    strata: Any = None,
    permutations: int = 1000,
    seed: int = 0,
    batch_size: int = 16,
    batched: bool | None = None,
    forward: Forward | None = None,
    read: Callable[[Any], Inputs] = as_inputs,
    progress: bool | None = None,
) -> GroupComparison:
    """What sets groups of samples apart inside of a model: unit by unit in every layer, and place by place in its maps.

    For every unit the mean activation over places, and for every place the share of the sample's |attribution|, are
    compared between groups: effect size with its standard error, and a p value by shuffling the groups, corrected for
    all units of all layers, or all places, together. A linear readout of each layer, scored on samples held out, says
    how well the layer as a whole tells the groups apart.

    The data is read once, batch by batch; kept are one number per sample and unit, and one per sample and place.
    Pictures are compared in at most 16 x 16 cells, volumes in 8 x 8 x 8.

    Args:
        model: any module.
        data: samples, see `layerlens.inputs.batches`; for places to be comparable, all of one size.
        groups: one name or number per sample; None takes the labels in the data. With more than two groups each is
            compared with the rest.
        layers: see `Selection`; None for every layer.
        target: what to attribute; None is the class predicted for each sample, `"label"` its label in the data. Maps of
            different classes differ by themselves: where groups are not predicted alike, give one class for all.
        method: of attribution, by name, see `saliency.methods`; None compares activations alone.
        options: of that method.
        strata: one name or number per sample: differences are taken, and groups shuffled, within samples of the same.
            So the class can be kept out of a comparison of sites. Samples of strata with a single group are left out.
        permutations: how many times the groups are shuffled.
        seed: of the shuffles and folds.
        batch_size: samples that run together.
        batched: whether the items of an iterable are batches; None: those of a DataLoader are.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.
        read: makes model inputs of a batch, or of one text.
        progress: whether to show a bar; None shows it in a terminal.

    Returns:
        `GroupComparison`.

    Raises:
        InputError: when there are not two groups of two samples, or the data cannot be compared sample by sample.
        LayerNotFound: when the selection matches no layer.
        OptionError: when an option is unknown or out of range.
        TargetError: when the target does not fit.

    Warns:
        UserWarning: when so few samples are given that no difference, however large, can reach p = .05.

    Source: effect size: Hedges 1981, J. Educational Statistics 6. Correction: Westfall & Young 1993, max-T.

    Example:
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> x = torch.randn(60, 4)
        >>> x[30:, 2] += 3
        >>> found = compare_groups(nn.Linear(4, 2), x, ["a"] * 30 + ["b"] * 30, target=0)
        >>> found.attribution().p.shape, bool(found.attribution().p[0, 2] < 0.05)
        (torch.Size([1, 4]), True)
    """
    check_count("permutations", permutations)
    check_seed(seed)
    aim = None if isinstance(target, str) and target == "label" else as_target(target)
    gatherer = Gatherer(model, layers, method, dict(options or {}), aim, forward, classes=False)
    stream = {"size": batch_size, "batched": batched, "read": read, "progress": progress}
    gathered = gatherer.read(data, **stream)
    if groups is None and gathered.labels is None:
        raise InputError("no groups: give groups=, one name or number per sample, or data of pairs (x, group).")
    named = one_per_sample("groups", gathered.labels if groups is None else groups, gathered.count)
    held = None if strata is None else one_per_sample("strata", strata, gathered.count)
    fields, _ = compared(gathered, named, held, permutations, seed)
    fields["settings"] |= {"method": method, "options": dict(options or {})}
    return GroupComparison(**fields)


def one_per_sample(what: str, given: Any, count: int) -> list[str]:
    """Names of the groups of samples as texts.

    Raises:
        InputError: when they are not one per sample.
    """
    listed = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(listed, str) or not isinstance(listed, Sequence) or len(listed) != count:
        shown = f"{len(listed)} of them" if isinstance(listed, Sequence) else repr(given)
        raise InputError(f"{what} must hold one name or number per sample, {count} in all; got {shown}.")
    if any(isinstance(one, (list, tuple, dict)) or one is None for one in listed):
        raise InputError(f"{what} must hold one name or number per sample; got {listed[0]!r} for the first.")
    return [str(one) for one in listed]


def compared(
    gathered: Gathered, named: list[str], held: list[str] | None, permutations: int, seed: int, each: str = ""
) -> tuple[dict[str, Any], torch.Tensor]:
    """The fields of a `GroupComparison`, and which samples were used, bool `(samples,)`.

    With `each`, the name of what the strata are, the first two groups are also compared in every stratum that holds
    enough samples of both.

    Raises:
        InputError: when there are not two groups of two samples in the strata.
    """
    names = sorted(set(named))
    if len(names) < 2:
        raise InputError(f"all {len(named)} samples are in the group {names[0]!r}; two groups are needed.")
    group = torch.tensor([names.index(one) for one in named])
    kinds = sorted(set(held or [""]))
    stratum = torch.zeros_like(group) if held is None else torch.tensor([kinds.index(one) for one in held])
    mixed = [k for k in range(len(kinds)) if len(set(group[stratum == k].tolist())) > 1]
    used = torch.isin(stratum, torch.tensor(mixed, dtype=torch.int64))
    counts = group[used].bincount(minlength=len(names))
    if int(counts.min()) < 2:
        few = names[int(counts.argmin())]
        where = "" if held is None else " in strata that hold several groups; compare with strata=None"
        raise InputError(f"group {few!r} has {int(counts.min())} sample(s){where}; at least two are needed.")
    group, stratum = group[used], stratum[used]
    chosen = [0] if len(names) == 2 else list(range(len(names)))
    contrasts = tuple(f"{names[k]} - {names[1] if len(names) == 2 else 'rest'}" for k in chosen)
    members = [group == k for k in chosen]
    if each:
        enough = [k for k in mixed if int((group[stratum == k]).bincount(minlength=2).min()) >= ENOUGH]
        contrasts += tuple(f"{contrasts[0]} ({each} {kinds[k]})" for k in enough)
        members += [(group == 0) & (stratum == k) for k in enough]
    shuffles = Shuffles(torch.stack(members, dim=1), stratum, permutations, seed)
    if int(shuffles.freedom.min()) < 1:
        raise InputError(f"{len(group)} samples in {len(mixed)} strata are too few to compare groups.")
    if (least := shuffles.smallest()) > 0.05:
        sizes = ", ".join(f"{count} of {name!r}" for count, name in zip(counts.tolist(), names, strict=True))
        more = "permutations" if permutations < 20 * len(contrasts) else "samples"
        warn(
            f"with {sizes} and {permutations} permutations no p can fall below {least:.2g}; give more {more}.",
        )
    read = _Reader(torch.stack(members, dim=1), contrasts, shuffles)
    layers = read.effects({name: table[used] for name, table in gathered.layers.items()})
    activations = {name: read.named(f"layer {name}", ("unit",), *found, "activation") for name, found in layers.items()}
    tables = {name: maps[used] for name, maps in gathered.maps.items()}
    places = {
        name: read.named(f"attribution of {name}", gathered.axes[name], *found, "share of |attribution|")
        for name, found in read.effects(tables).items()
    }
    folds = hold_out(group, stratum, seed)
    areas = [separation(gathered.layers[name][used], shuffles, folds) for name in activations]
    values, null = (torch.stack(parts) for parts in zip(*areas, strict=True))
    several = len(contrasts) > 1
    settings: dict[str, Any] = {"permutations": permutations, "seed": seed, "strata": None if held is None else kinds}
    profile = LayerProfile(
        quantity="separation (ROC area)",
        layers=tuple(activations),
        values=values if several else values[:, 0],
        units="1",
        signed=False,
        method="ridge readout of mean activations, held out; null: 95 % of shuffled groups",
        settings=settings,
        series=contrasts if several else (),
        null=null if several else null[:, 0],
    )
    fields = {
        "groups": tuple(names),
        "counts": tuple(counts.tolist()),
        "activations": activations,
        "attributions": places,
        "separation": profile,
        "left_out": gathered.left_out,
        "target": gathered.target,
        "method": f"mean activations{f'; {gathered.how}' if gathered.how else ''}; {permutations} permutations",
        "settings": settings,
    }
    return fields, used


class _Reader:
    """From tables to named effects."""

    def __init__(self, member: torch.Tensor, contrasts: tuple[str, ...], shuffles: Shuffles) -> None:
        self.member, self.contrasts, self.shuffles = member, contrasts, shuffles

    def effects(self, tables: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, Effect, torch.Tensor]]:
        """Table, effect and corrected p of each; the tables are one family."""
        found = {name: self.shuffles.effect(table.double().flatten(1)) for name, table in tables.items()}
        p = corrected(found) if found else {}
        return {name: (table, found[name], p[name]) for name, table in tables.items()}

    def named(
        self, what: str, axes: tuple[str, ...], table: torch.Tensor, effect: Effect, p: torch.Tensor, units: str
    ) -> GroupEffects:
        """One result."""
        shape = (len(self.contrasts), *table.shape[1:])
        sides = zip(self.member.T, self.shuffles.support.T, strict=True)
        means = torch.stack(
            [torch.stack([table[ours & both].mean(dim=0), table[~ours & both].mean(dim=0)]) for ours, both in sides]
        )
        return GroupEffects(
            what=what,
            axes=axes,
            contrasts=self.contrasts,
            means=means,
            difference=effect.difference.reshape(shape),
            effect=effect.size.reshape(shape),
            error=effect.error.reshape(shape),
            p=p.reshape(shape),
            null=self.shuffles.size(effect.peaks.quantile(0.95, dim=0)).reshape(-1),
            units=units,
        )
