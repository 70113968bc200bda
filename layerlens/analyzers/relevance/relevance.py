"""Layer-wise relevance propagation on autograd's own graph, for any model, in one backward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.warnings import warn_of_zeros
from layerlens.errors import OptionError
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.results import Relevance
from layerlens.targets.target import Spec

from .propagation.conditions import Units
from .propagation.propagation import Propagation
from .rules.rulebook import Rulebook

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
    layers: Selection = (),
    through: Mapping[str, Units] | None = None,
    parameters: str | Sequence[str] = (),
    strict: bool = False,
    forward: Forward | None = None,
) -> Relevance:
    """Propagate a score back to the input by layer-wise relevance propagation (LRP), with a ledger of all of it.

    Every tensor a gets a multiplier g, and its relevance is R = a g (Bach et al. 2015). Linear operations pass g as
    the gradient does, which is the epsilon rule in the limit epsilon -> 0 (their eq. 58; Ancona et al. 2018); an
    elementwise f passes g (f(x) - f(0)) / x; normalisations keep their scale constant (Ali et al. 2022); products and
    attention follow the rulebook. The rules are hooks on autograd's nodes, so any model works as it is.

    Args:
        model: any module.
        x: its input: a tensor `(batch, ...)`, a tuple, or a dict; token ids are attributed at their embedding.
        target: what to explain, see `as_target`; None for the predicted class.
        rules: a rulebook or the name of one in `RULEBOOKS`; `"auto"` (default) takes what fits the graph: `"cp"` where
            there is attention, `"epsilon_plus"` for other networks with convolutions, `"gate"` for those with gates
            (LSTM, GRU), else `"epsilon"`. `settings["rules"]` says which it was, and why.
        layers: at which layers' outputs to keep the relevance (see `Selection`); none by default, None for all.
        through: layer -> units: of the relevance that passes the layer's output only that of these units goes on, and
            what is held back is absorbed (see `concepts`). An index, several, a list for each sample, or a boolean
            mask. What goes around the layer, by a skip connection, is not held back: name the block instead.
        parameters: names of parameters, or globs over them (`"*.weight"`, `"*"`), whose relevance w g is wanted: what
            of the score passes each weight, summed over the batch (the relevance of weights of Becking et al. 2022).
            For biases it is what the ledger books. Rules that split by sign give it for weights only.
        strict: raise on an operation without a rule; otherwise warn and use its gradient.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        A `Relevance`: values shaped like the input in units of the score, the ledger (inputs + additive constants +
        absorbed = score), and the relevance at each layer that was asked for.

    Raises:
        InputError: when the input cannot carry a gradient.
        TargetError: when the target does not fit the output.
        RelevanceError: when no relevance can reach the input.
        UnknownOperation: under `strict`.

    Warns:
        UserWarning: when the ledger does not close, the model detaches a signal, or the values of a sample are zero
            everywhere.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> result = relevance(net, torch.ones(1, 3), target=1)
        >>> bool(result.ledger.relative.max() < 1e-5)
        True
    """
    with borrowed(model):
        propagation = Propagation(
            model, x, [target], rules=rules, layers=layers, through=through, parameters=parameters, strict=strict,
            forward=forward,
        )  # fmt: skip
        (result,) = propagation.results()
    if through is None:
        values = result.values if isinstance(result.values, dict) else {"": result.values}
        warn_of_zeros(values, "relevance", CONSTANT)
    return result


def relevance_by_target(
    model: nn.Module,
    x: Input,
    *,
    targets: Sequence[Spec],
    rules: str | Rulebook = "auto",
    layers: Selection = (),
    through: Mapping[str, Units] | None = None,
    parameters: str | Sequence[str] = (),
    strict: bool = False,
    forward: Forward | None = None,
) -> list[Relevance]:
    """The relevance of several targets from one forward pass: a backward sweep each.

    Args:
        model: any module.
        x: its input, `(batch, ...)`.
        targets: what to explain, each as in `as_target`; contrasts among them.
        rules: as in `relevance`, as all that follow.
        layers: where to keep the relevance.
        through: conditions.
        parameters: whose relevance is wanted.
        strict: whether an operation without a rule is an error.
        forward: in place of calling the model.

    Returns:
        One `Relevance` for each target, in their order.

    Raises:
        OptionError: when there is no target.
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
    with borrowed(model):
        propagation = Propagation(
            model, x, targets, rules=rules, layers=layers, through=through, parameters=parameters, strict=strict,
            forward=forward,
        )  # fmt: skip
        return propagation.results()
