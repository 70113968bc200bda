"""How much of a score each part of a model makes itself, and how much passes it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn
from torch.autograd.graph import GradientEdge

from layerlens.analyzers.common.calls.blocks import usual_layers
from layerlens.analyzers.common.features.basis import Basis
from layerlens.analyzers.common.features.basis_site import Sites as Selected, find_basis_sites, split_bases
from layerlens.analyzers.common.held_inputs import held_input
from layerlens.analyzers.common.messages import warn_left_out
from layerlens.analyzers.common.parts.heads import Heads, find_heads
from layerlens.axes.followed import followed
from layerlens.errors import LayerNotFound, OptionError, choose, suggestion
from layerlens.inputs.inputs import Forward, Hold, Input, as_inputs
from layerlens.model.borrowed import borrowed, generator_states, restore_generators
from layerlens.model.layers import Layers, Selection, is_listed
from layerlens.results import Contributions, Entry, Ledger
from layerlens.signatures import public
from layerlens.targets.target import Spec

from ..book import Bookkeeper, Sweep, book_inputs, warn_of_residual
from ..plan import Plan, make_plan
from ..record import Recording, record
from ..rules.rulebook import Rulebook
from ..sweep import carry_to_ends, ends_of, one_sweep, rules_attached, warn_of_cuts
from .branches import branch_layers
from .changes import changes_by_differences, changes_by_rules
from .part_site import PartSite
from .sites import Sites, holding, multipliers_at, relevance_at

Kind = Literal["layer", "head", "channel", "unit", "position"]
KINDS: tuple[str, ...] = get_args(Kind)
Multipliers = Literal["difference", "rules"]
MULTIPLIERS: tuple[str, ...] = get_args(Multipliers)
Parts: TypeAlias = "Kind | Selected"
"""A kind of parts, layers or bases, or a list of a kind and those."""


@public
def contributions(
    model: nn.Module,
    x: Input,
    layers: Selected = None,
    *,
    other: Input | None = None,
    parts: Parts = "layer",
    target: Spec = None,
    rules: str | Rulebook = "auto",
    multipliers: Multipliers = "difference",
    heads: int | None = None,
    hold: Hold = None,
    forward: Forward | None = None,
) -> Contributions:
    """Split a score into what each part of a model contributes: directly, and in total.

    The direct contribution of a part is the relevance that reaches it without passing another part of the table: with
    h its values and g the multiplier that arrives there when every part sends nothing further, h g. The direct
    contributions, the relevance that reaches the input past all parts, the additive constants and what rules absorb
    add up to the score: direct logit attribution (Elhage et al. 2021; nostalgebraist 2020) for any network, with the
    scale of normalizations held constant. The total contribution is the relevance at the part when none holds any
    back, what it says by way of later parts included; totals do not add up.

    Args:
        layers: which layers, see `Selection`; None for those whose outputs are added to a stream that passes them by
            (attentions, MLPs, residual branches), or, in a model without, for the layers of `lens.ablate`. In a chain
            of layers all that reaches the score passes the last, which then has all of the direct contribution. Of a
            `Basis` among them the parts are its features, and the error that they leave.
        other: another input of the same shapes, such as a corrupted text: `difference` is then g (h - h') with h' the
            values there and g a multiplier of `multipliers`. It estimates what `lens.patch` measures.
        parts: `"layer"` for whole layers; `"head"` cuts attentions into heads, read where the output projection takes
            them, and leaves the other layers whole; `"channel"` (or `"unit"`) and `"position"` cut every layer. Or
            layers and bases themselves, as in `layers`, perhaps in a list with one of these words:
            `parts=["head", basis]`.
        rules: rulebook, or its name, as in `relevance`.
        multipliers: kind of g in `difference`: `"difference"` for multipliers of differences (DeepLIFT, Shrikumar et
            al. 2017), by which every operation explains the change of its result between the two inputs in full: over
            the parts of a layer that all of the score passes, g (h - h') adds up to the change of the score. Two
            forward passes and a backward pass more. `"rules"` for the multipliers of the total contribution (relevance
            patching, Jafari et al. 2025), one forward pass more.
        heads: number of heads of each attention; None for its own.

    Returns:
        `Contributions`: `direct` and `total` of every part and sample, with `inputs`, `constants` and `absorbed`, whose
        sum with the direct ones is the score. One forward and two backward passes (a further forward pass when the
        layers are found).

    Raises:
        InputError: if the input cannot carry a gradient, a basis does not fit its layer, or the model takes another
            route on the other input.
        LayerNotFound: when no selected layer is on the way from the input to the score.
        OptionError: when an option is unknown, or layers are given twice.
        SelectionError, AxesUnknown: if a basis does not name one tensor of one call, or its units are unknown.
        RelevanceError: if no relevance can reach the input.
        TargetError: if the target does not fit the output.

    Warns:
        UserWarning: if the parts do not add up to the score, or layers had to be left out.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> found = contributions(net, torch.ones(1, 3), "1", target=1, parts="channel")
        >>> bool((found.direct.sum(0) + found.constants - found.score).abs().max() < 1e-6)
        True
    """
    choose("multipliers", multipliers, MULTIPLIERS)
    given = held_input(model, x, hold, forward)
    with borrowed(model):
        opened = open_parts(model, given, layers, parts, "parts", target, rules, heads, forward)
        score, ones = opened.score, torch.ones_like(opened.score)
        with opened.rules() as held:
            held[:] = [False] * len(held)
            whole = opened.sweep(score, ones)
            total = opened.relevance(whole)
            by_rules = opened.multipliers(whole)
            held[:] = [True] * len(held)
            direct = opened.sweep(score, ones)
            held_back = opened.relevance(direct)
        ledger = opened.ledger(direct, held_back)
        difference = None
        if other is not None:
            there = held_input(model, other, hold, forward)
            difference = torch.cat(
                changes_by_rules(opened, there, by_rules)
                if multipliers == "rules"
                else changes_by_differences(opened, given, there)
            )
    warn_of_cuts(opened.recording)
    warn_of_residual(ledger, score.dtype)
    opened.warn_left_out("contributions")
    aim = opened.recording.scores.targets[0]
    return Contributions(
        items=tuple(site.part_name(number) for site in opened.sites for number in range(site.size)),
        layers=tuple(site.name for site in opened.sites for _ in range(site.size)),
        index=tuple(site.index(number) for site in opened.sites for number in range(site.size)),
        direct=torch.cat(held_back),
        total=torch.cat(total),
        difference=difference,
        ledger=ledger,
        parts=opened.kind,
        target=aim.label,
        targets=aim.each,
        method=f"contributions, relevance, {opened.plan.rulebook.name}",
        settings={
            **opened.plan.settings, "parts": opened.kind, **opened.settings,
            **({} if other is None else {"multipliers": multipliers}),
        },
        explanation=EXPLANATION,
    )  # fmt: skip


EXPLANATION = (
    "The direct contribution of a part is what it adds to the score without passing another part of the table; they "
    "add up to the score with what reaches the input past all parts, the additive constants and what rules absorb.",
    "The scale of normalizations and the attention weights are taken as they are: what a part does by changing them "
    "does not count. Taking a part out (lens.ablate) measures that too, and what later parts then make up for.",
)


@dataclasses.dataclass(frozen=True)
class OpenedParts:
    """A recorded forward pass with its parts.

    Attributes:
        recording: the forward pass.
        plan: the rules.
        bookkeeper: notes what is absorbed and what constants get.
        outputs: where the tensors of the parts were kept.
        sites: those tensors, in order of execution.
        left_out: layer -> why it has no parts.
        kind: what the parts are, `"feature"` where all are of a basis.
        named: whether layers were asked for.
        generators: states of the random generators before the pass.
        forward: function to call instead of the model.
    """

    recording: Recording
    plan: Plan
    bookkeeper: Bookkeeper
    outputs: Sites
    sites: list[PartSite]
    left_out: dict[str, str]
    kind: str
    named: bool
    generators: Any
    forward: Forward | None

    @property
    def score(self) -> torch.Tensor:
        """The score of each sample."""
        return self.recording.scores.values[0]

    @property
    def settings(self) -> dict[str, Any]:
        """What has no parts, and the bases, for results."""
        bases = [repr(site) for site in self.outputs.asked[3]]
        return {"left_out": self.left_out, **({"bases": bases} if bases else {})}

    def warn_left_out(self, method: str) -> None:
        """Warn of layers that have no parts, if they were asked for."""
        if self.named:
            warn_left_out(method, self.left_out, explicit=True)

    @contextlib.contextmanager
    def rules(self) -> Iterator[list[bool]]:
        """Attach the rules; yields for each site whether it holds relevance back."""
        with holding(self.sites) as held, rules_attached(self.recording, self.plan, self.bookkeeper):
            yield held

    def sweep(self, start: torch.Tensor | GradientEdge, multiplier: torch.Tensor) -> Sweep:
        """Run one backward pass; the graph is kept."""
        return one_sweep(self.recording, self.bookkeeper, ends_of(self.recording), start, multiplier, keep=True)

    def multipliers(self, sweep: Sweep) -> list[torch.Tensor | None]:
        """Return the multiplier that arrived at each site."""
        return multipliers_at(sweep, len(self.recording.leaves), self.sites, self.outputs)

    def relevance(self, sweep: Sweep) -> list[torch.Tensor]:
        """Return the relevance of each part of each site, `(parts, batch)`."""
        return relevance_at(self.sites, self.multipliers(sweep), self.bookkeeper)

    def ledger(self, sweep: Sweep, held: Sequence[torch.Tensor]) -> Ledger:
        """Return where the score went in a sweep, what the sites held back included."""
        self.bookkeeper.sweep = sweep
        sweep.carried = carry_to_ends(sweep.first_layer, ends_of(self.recording), self.bookkeeper)
        book_inputs(self.recording, self.bookkeeper, sweep)
        parts = [
            Entry("part", site.output.layer, site.part_name(number), row)
            for site, rows in zip(self.sites, held, strict=True)
            for number, row in enumerate(rows)
        ]
        return self.bookkeeper.ledger(self.score, parts)


def open_parts(
    model: nn.Module,
    x: Input,
    layers: Selected,
    parts: Parts,
    option: str,
    target: Spec,
    rules: str | Rulebook,
    heads: int | None,
    forward: Forward | None,
) -> OpenedParts:
    """Run a borrowed model, and keep the tensors of its parts.

    Args:
        model: borrowed model.
        x: its input.
        layers: layers and bases.
        parts: a kind, or more layers and bases.
        option: name of the option `parts`.
        target: what is explained.
        rules: rulebook, or its name.
        heads: number of heads of each attention.
        forward: function to call instead of the model.

    Raises:
        LayerNotFound: when no layer is on the way from the input to the score.
        OptionError: when a kind is unknown, or layers are given twice.
    """
    bases, wanted, kind = _selected(model, layers, parts, option)
    inputs = as_inputs(x)
    known, generators = followed(model, inputs, forward), generator_states()
    chosen = None if wanted is None else [] if wanted == () else _names(model, wanted)
    attentions = find_heads(model, known, chosen, heads) if kind == "head" and chosen != [] else []
    features = find_basis_sites(model, inputs, bases, forward)
    whole = dict[str, str]()

    def recorded(names: list[str] | None) -> tuple[Sites, Recording]:
        restore_generators(generators)
        outputs = Sites(model, names, attentions, "layer" if kind == "head" else kind, features)
        return outputs, record(model, x, [target], rules=rules, layers=outputs, forward=forward)

    if chosen is not None:
        chosen, whole = _besides(attentions, chosen)
        outputs, recording = recorded(chosen)
    else:
        outputs, recording = recorded(None)
        usual = branch_layers(recording) or _names(model, usual_layers(model, inputs, forward, 0))
        chosen, whole = _besides(attentions, usual)
        if not outputs.take(chosen):
            outputs, recording = recorded(chosen)
    plan = make_plan(recording)
    sites, left_out = outputs.parts(known)
    left_out |= whole
    reached = {id(info.node) for info in recording.nodes if info.carries}
    for site in [site for site in sites if id(site.edge.node) not in reached]:
        left_out[site.name] = "is not on the way from the input to the score"
    sites = [site for site in sites if id(site.edge.node) in reached]
    if not sites:
        why = "; ".join(f"{name} {reason}" for name, reason in list(left_out.items())[:4])
        raise LayerNotFound(
            f"no layer can be a part by {kind}: {why or 'none was found'}. Give other parts, or layers, such as '**'."
        )
    shown = "feature" if wanted == () else kind
    named = wanted is not None or any(one.name in left_out for one in features)
    book = Bookkeeper.of(recording)
    return OpenedParts(recording, plan, book, outputs, sites, left_out, shown, named, generators, forward)


def _selected(model: nn.Module, layers: Selected, parts: Parts, option: str) -> tuple[list[Basis], Selection, str]:
    """The bases, the other layers (None for the usual ones, `()` for none), and the kind of their parts.

    Raises:
        OptionError: when a kind is unknown, or there are several, or layers are given twice.
    """
    entries: list[Any] = list(parts) if is_listed(parts) else [parts]
    kinds = [one for one in entries if isinstance(one, str) and one in KINDS]
    bases, named = split_bases([one for one in entries if one not in kinds])
    if len(kinds) > 1 or not entries:
        raise OptionError(f"{option}={parts!r} must have one kind of parts: {', '.join(KINDS)}.")
    if isinstance(parts, str) and not kinds:
        try:
            Layers(model).select(parts, calls=True, tensors=True)
        except LayerNotFound as error:
            near = suggestion(parts, [*KINDS, *Layers(model)])
            raise OptionError(
                f"{option}={parts!r} is neither a kind of parts ({', '.join(KINDS)}) nor a layer.{near}"
            ) from error
    if layers is None:
        selection = named or (None if kinds else ())
    elif named:
        raise OptionError(f"layers= and {option}={parts!r} both name layers: give all of them in one.")
    else:
        more, selection = split_bases(layers)
        bases = [*more, *bases]
    kind = kinds[0] if kinds else "layer"
    return bases, selection, "channel" if kind == "unit" else kind


def _besides(attentions: Sequence[Heads], layers: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The layers that are not cut into heads; and those that hold attentions which are, with the reason."""
    cut = {place for one in attentions for place in (one.label, one.path)}
    kept = [path for path in layers if path not in cut]
    around = [path for path in kept if any(place.startswith(f"{path}.") for place in cut)]
    reason = "holds attentions that are cut into heads; name the other layers inside"
    return [path for path in kept if path not in around], dict.fromkeys(around, reason)


def _names(model: nn.Module, layers: Selection) -> list[str]:
    """The layers, by names that may have calls and tensors."""
    matches = Layers(model).select(layers, calls=True, tensors=True).selections()
    return [name for names in matches for name in names if name]
