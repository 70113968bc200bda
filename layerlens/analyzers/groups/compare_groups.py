"""How groups of samples differ: in the activations of every layer, and in where the model looks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from layerlens.errors import InputError, check_count, check_seed, warn
from layerlens.inputs.batches import Data, Labels, Read, Samples, per_sample
from layerlens.inputs.inputs import Forward, as_inputs
from layerlens.model.layers import Selection
from layerlens.results import GroupComparison, GroupEffects, LayerProfile
from layerlens.signatures import public
from layerlens.targets.target import Spec

from .permutation import Shuffles, corrected
from .sample_tables import SampleTables, sample_tables
from .separation import hold_out, separation

ENOUGH = 5
"""Samples of both groups that a stratum needs to be compared by itself."""


@public
def compare_groups(
    model: nn.Module,
    data: Samples,
    groups: Labels | None = None,
    layers: Selection = None,
    *,
    target: Spec = None,
    method: str | None = "auto",
    options: dict[str, Any] | None = None,
    strata: Labels | None = None,
    permutations: int = 1000,
    seed: int = 0,
    batch_size: int = 16,
    batched: bool | None = None,
    forward: Forward | None = None,
    read: Read = as_inputs,
    progress: bool | None = None,
) -> GroupComparison:
    """Compare groups of samples inside a model: unit by unit in every layer, and place by place in its maps.

    For every unit the mean activation over places, and for every place the share of the sample's |attribution|, are
    compared between groups: effect size with its standard error, and a p value by shuffling the groups, corrected for
    all units of all layers, or all places, together. A linear readout of each layer, scored on samples held out, says
    how well the layer as a whole separates the groups.

    The data is read once, batch by batch; kept are one number per sample and unit, and one per sample and place.
    Pictures are compared in at most 16 x 16 cells, volumes in 8 x 8 x 8.

    Args:
        data: ... For places to be comparable, all samples have one size.
        groups: one name or number per sample; None takes the labels in the data. With more than two groups each is
            compared with the rest.
        target: what to attribute; None is the class predicted for each sample, `"label"` its label in the data. Maps of
            different classes differ by themselves: where groups are not predicted alike, give one class for all.
        method: name of a method of attribution, see `saliency.methods`; None compares activations alone.
        options: options of that method.
        strata: one name or number per sample: differences are taken, and groups shuffled, among samples of the same
            stratum, for example to keep the class out of a comparison of sites. Samples of strata with a single group
            are left out.
        permutations: number of times that the groups are shuffled.

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
        >>> x[30:, 2] += 1.5
        >>> found = compare_groups(nn.Linear(4, 2), x, ["a"] * 30 + ["b"] * 30, target=0)
        >>> found.attribution().p.shape, bool(found.attribution().p[0, 2] < 0.05)
        (torch.Size([1, 4]), True)
    """
    check_count("permutations", permutations)
    check_seed(seed)
    data = Data.of(data, batch_size=batch_size, batched=batched, read=read, progress=progress)
    tables = sample_tables(model, data, layers, target, method, options, forward, "compare_groups")
    groups = tables.labels if groups is None else groups
    if groups is None:
        raise InputError("no groups: give groups=, one name or number per sample, or data of pairs (x, group).")
    group_names = [str(one) for one in per_sample("groups", groups, tables.count)]
    stratum_names = None if strata is None else [str(one) for one in per_sample("strata", strata, tables.count)]
    fields = compared(tables, Design(group_names, stratum_names, permutations, seed), permutations, seed)
    fields["settings"] |= {"method": method, "options": dict(options or {})}
    return GroupComparison(**fields)


class Design:
    """Which samples are compared with which, as they are and shuffled.

    With `each`, the name of what the strata are, the first two groups are also compared in every stratum that holds
    enough samples of both.

    Attributes:
        groups: names of the groups.
        strata: names of the strata; None for one stratum.
        counts: samples of each group that are used.
        used: which samples are used, bool `(samples,)`: those of strata with several groups.
        group: group of each sample used.
        stratum: stratum of each sample used.
        contrasts: names of the comparisons.
        member: which samples are in the first group of each, bool `(samples used, contrasts)`.
        shuffles: the members, shuffled within strata.

    Raises:
        InputError: when there are not two groups of two samples in the strata.
    """

    def __init__(
        self, groups: list[str], strata: list[str] | None, permutations: int, seed: int, each: str = ""
    ) -> None:
        names = sorted(set(groups))
        if len(names) < 2:
            raise InputError(f"all {len(groups)} samples are in the group {names[0]!r}; two groups are needed.")
        group = torch.tensor([names.index(one) for one in groups])
        kinds = sorted(set(strata or [""]))
        stratum = torch.zeros_like(group) if strata is None else torch.tensor([kinds.index(one) for one in strata])
        mixed = [k for k in range(len(kinds)) if len(set(group[stratum == k].tolist())) > 1]
        self.used = torch.isin(stratum, torch.tensor(mixed, dtype=torch.int64))
        counts = group[self.used].bincount(minlength=len(names))
        if int(counts.min()) < 2:
            few = names[int(counts.argmin())]
            where = "" if strata is None else " in strata that hold several groups; compare with strata=None"
            raise InputError(f"group {few!r} has {int(counts.min())} sample(s){where}; at least two are needed.")
        self.groups, self.strata = tuple(names), None if strata is None else kinds
        self.counts = tuple(counts.tolist())
        self.group, self.stratum = group[self.used], stratum[self.used]
        first = [0] if len(names) == 2 else list(range(len(names)))
        self.contrasts = tuple(f"{names[k]} - {names[1] if len(names) == 2 else 'rest'}" for k in first)
        members = [self.group == k for k in first]
        if each:
            enough = [k for k in mixed if int(self.group[self.stratum == k].bincount(minlength=2).min()) >= ENOUGH]
            self.contrasts += tuple(f"{self.contrasts[0]} ({each} {kinds[k]})" for k in enough)
            members += [(self.group == 0) & (self.stratum == k) for k in enough]
        self.member = torch.stack(members, dim=1)
        self.shuffles = Shuffles(self.member, self.stratum, permutations, seed)
        if int(self.shuffles.freedom.min()) < 1:
            raise InputError(f"{len(self.group)} samples in {len(mixed)} strata are too few to compare groups.")
        if (least := self.shuffles.smallest()) > 0.05:
            sizes = ", ".join(f"{count} of {name!r}" for count, name in zip(self.counts, names, strict=True))
            more = "permutations" if permutations < 20 * len(self.contrasts) else "samples"
            warn(f"with {sizes} and {permutations} permutations no p can fall below {least:.2g}; give more {more}.")


def compared(tables: SampleTables, design: Design, permutations: int, seed: int) -> dict[str, Any]:
    """Return the fields of a `GroupComparison`."""
    layers = {name: table[design.used] for name, table in tables.layers.items()}
    maps = {name: table[design.used] for name, table in tables.maps.items()}
    folds = hold_out(design.group, design.stratum, seed)
    areas = [separation(table, design.shuffles, folds) for table in layers.values()]
    values, null = (torch.stack(parts) for parts in zip(*areas, strict=True))
    settings: dict[str, Any] = {"permutations": permutations, "seed": seed, "strata": design.strata}
    places = _effects(design, maps, "attribution of", tables.axes, "share of |attribution|").items()
    several = len(design.contrasts) > 1
    return {
        "groups": design.groups,
        "counts": design.counts,
        "activations": _effects(design, layers, "layer", dict.fromkeys(layers, ("unit",)), "activation"),
        "attributions": {
            name: dataclasses.replace(one, features=tables.features.get(name, ())) for name, one in places
        },
        "separation": LayerProfile(
            quantity="separation (ROC area)",
            layers=tuple(layers),
            values=values if several else values[:, 0],
            units="1",
            signed=False,
            method="ridge readout of mean activations, held out; null: 95 % of shuffled groups",
            settings=settings,
            series=design.contrasts if several else (),
            null=null if several else null[:, 0],
        ),
        "left_out": tables.left_out,
        "target": tables.target,
        "method": f"mean activations{f'; {tables.method}' if tables.method else ''}; {permutations} permutations",
        "settings": settings,
    }


def _effects(
    design: Design, tables: dict[str, torch.Tensor], what: str, axes: Mapping[str, tuple[str, ...]], units: str
) -> dict[str, GroupEffects]:
    """Return the effects in each table, with p values corrected over all of them together."""
    effects = {name: design.shuffles.effect(table.double().flatten(1)) for name, table in tables.items()}
    p = corrected(effects) if effects else {}
    found = {}
    for name, effect in effects.items():
        table, shape = tables[name], (len(design.contrasts), *tables[name].shape[1:])
        sides = zip(design.member.T, design.shuffles.support.T, strict=True)
        means = torch.stack(
            [torch.stack([table[ours & both].mean(dim=0), table[~ours & both].mean(dim=0)]) for ours, both in sides]
        )
        found[name] = GroupEffects(
            what=f"{what} {name}",
            axes=axes[name],
            contrasts=design.contrasts,
            means=means,
            difference=effect.difference.reshape(shape),
            effect=effect.size.reshape(shape),
            error=effect.error.reshape(shape),
            p=p[name].reshape(shape),
            null=design.shuffles.size(effect.peaks.quantile(0.95, dim=0)).reshape(-1),
            units=units,
        )
    return found
