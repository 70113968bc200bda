"""Layer-wise relevance propagation on autograd's own graph, for any model: record, plan, sweep, book."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from layerlens.analyzers.common.features.basis_site import Sites
from layerlens.analyzers.common.held_inputs import held_input
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.scorer import warn_of_zeros
from layerlens.axes.followed import followed
from layerlens.errors import OptionError
from layerlens.inputs.inputs import Forward, Hold, Input, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.results import Relevance
from layerlens.signatures import public
from layerlens.targets.target import Spec

from .book import Bookkeeper, book
from .conditions import Units
from .plan import make_plan
from .record import record
from .rules.rulebook import Rulebook
from .sweep import sweep

CONSTANT = "all of the score is booked with the additive constants (units that are off, or an input of zeros)"


@method(
    family="relevance",
    passes="about 3 gradients",
    source="Bach et al. 2015; Montavon et al. 2017; Achtibat et al. 2024",
)
def relevance(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    rules: str | Rulebook = "auto",
    layers: Sites = (),
    through: Mapping[str, Units] | None = None,
    parameters: str | Sequence[str] = (),
    strict: bool = False,
    hold: Hold = None,
    forward: Forward | None = None,
) -> Relevance:
    """Propagate a score back to the input by layer-wise relevance propagation (LRP), with a ledger of all of it.

    Every tensor a gets a multiplier g, and its relevance is R = a g (Bach et al. 2015). Linear operations pass g as
    the gradient does, which is the epsilon rule in the limit epsilon -> 0 (their eq. 58; Ancona et al. 2018); an
    elementwise f passes g (f(x) - f(0)) / x; normalizations keep their scale constant (Ali et al. 2022); products and
    attention follow the rulebook. The rules are hooks on autograd's nodes, so any model works unchanged.

    Args:
        x: ... Token ids are attributed at their embedding.
        rules: rulebook, or the name of one in `RULEBOOKS`; `"auto"` takes the one that fits the graph: `"cp"` with
            attention, `"epsilon_plus"` for other networks with convolutions, `"gate"` for those with gates (LSTM, GRU),
            else `"epsilon"`. `settings["rules"]` says which it was, and why.
        layers: layers at whose outputs to keep the relevance, see `Selection`, or `input_of(layer)` for what one takes;
            none by default, None for all. A `Basis` among them divides the relevance of its layer among its features:
            `result.bases["blocks.1"]`.
        through: layer -> units: only the relevance of these units passes the layer's output, the rest is absorbed (see
            `concepts`). An index, several, a list for each sample, or a boolean mask. What goes around the layer, by a
            skip connection, is not held back: name the block instead.
        parameters: names of parameters, or globs over them (`"*.weight"`, `"*"`), whose relevance w g to keep: how much
            of the score passes each weight, summed over the batch (Becking et al. 2022). For biases it is what the
            ledger books. Rules that split by sign define it for weights only.
        strict: whether to refuse an operation without a rule, instead of warning and using its gradient.

    Returns:
        A `Relevance`: values shaped like the input in units of the score, the ledger (inputs + additive constants +
        absorbed = score), and the relevance at each selected layer and basis.

    Raises:
        InputError: if the input cannot carry a gradient, or a basis does not fit its layer.
        SelectionError, AxesUnknown: if a basis does not name one tensor of one call, or its units are unknown.
        TargetError: if the target does not fit the output.
        RelevanceError: if no relevance can reach the input.
        UnknownOperation: under `strict`.

    Warns:
        UserWarning: if the ledger does not close, the model detaches a signal, or the values of a sample are zero
            everywhere.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> result = relevance(net, torch.ones(1, 3), target=1)
        >>> bool(result.ledger.relative.max() < 1e-5)
        True
    """
    given = held_input(model, x, hold, forward)
    (result,) = _propagate(model, given, [target], rules, layers, through, parameters, strict, forward)
    if through is None:
        values = result.values if isinstance(result.values, dict) else {"": result.values}
        warn_of_zeros(values, "relevance", CONSTANT)
    return result


@public
def relevance_by_target(
    model: nn.Module,
    x: Input,
    *,
    targets: Sequence[Spec],
    rules: str | Rulebook = "auto",
    layers: Sites = (),
    through: Mapping[str, Units] | None = None,
    parameters: str | Sequence[str] = (),
    strict: bool = False,
    hold: Hold = None,
    forward: Forward | None = None,
) -> list[Relevance]:
    """Propagate the scores of several targets from one forward pass, with a backward sweep each.

    Args:
        targets: what to explain, each as in `as_target`; contrasts among them.
        layers: layers at whose outputs to keep the relevance, and bases; none by default, None for all.
        through: layer -> units that relevance may pass, as in `relevance`.
        parameters: names of parameters, or globs over them, whose relevance to keep.
        strict: whether to refuse an operation without a rule.

    Returns:
        One `Relevance` for each target, in their order.

    Raises:
        OptionError: if there is no target.
        InputError, TargetError, RelevanceError, UnknownOperation: as `relevance` does.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> [result.target for result in relevance_by_target(net, torch.ones(1, 3), targets=[0, 1])]
        ['class 0', 'class 1']
    """
    if isinstance(targets, str) or not isinstance(targets, Sequence) or not targets:
        raise OptionError(f"targets must be a list of one or more targets, got {targets!r}.")
    given = held_input(model, x, hold, forward)
    return _propagate(model, given, targets, rules, layers, through, parameters, strict, forward)


def _propagate(
    model: nn.Module,
    x: Input,
    targets: Sequence[Spec],
    rules: str | Rulebook,
    layers: Sites,
    through: Mapping[str, Units] | None,
    parameters: str | Sequence[str],
    strict: bool,
    forward: Forward | None,
) -> list[Relevance]:
    if through:
        followed(model, as_inputs(x), forward)
    with borrowed(model):
        recording = record(
            model, x, targets, rules=rules, layers=layers, through=through, parameters=parameters, forward=forward
        )
        plan = make_plan(recording, strict=strict)
        bookkeeper = Bookkeeper.of(recording)
        sweeps = sweep(recording, plan, bookkeeper)
        return [book(recording, plan, bookkeeper, one, index) for index, one in enumerate(sweeps)]
