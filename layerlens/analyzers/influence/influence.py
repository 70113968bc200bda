"""Which training samples made a prediction what it is: TracIn and influence functions by captum, TRAK by dattri."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from layerlens.analyzers.common.last_linear import last_linear
from layerlens.errors import InputError, OptionError, check_count, check_seed, choose, need
from layerlens.inputs.batches import Data, Labels, Read, Samples
from layerlens.inputs.inputs import Forward, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Layers, Selection
from layerlens.progress import track
from layerlens.results import Influence
from layerlens.signatures import public

from .carrier import NOT_FINITE, Carrier, Loss, Pairs, Reduced, check_loss, usual_loss
from .checkpoints import Checkpoint, listed, load
from .trak import by_dattri

By = Literal["tracin", "tracin_fast", "influence_functions", "influence_functions_exact", "trak"]


@public
def influence(
    model: nn.Module,
    x: Samples | None = None,
    labels: Labels | None = None,
    *,
    training: Samples,
    method: By = "tracin",
    checkpoints: Sequence[Checkpoint] | None = None,
    learning_rates: Sequence[float] | None = None,
    layers: Selection = None,
    loss: Loss | None = None,
    damping: float | None = None,
    rank: int | None = None,
    memory: float = 2.0,
    batch_size: int = 16,
    seed: int = 0,
    read: Read = as_inputs,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> Influence:
    """Measure how much every training sample helped or harmed the prediction of some samples.

    A positive number: training on that sample lowers the loss of x, so a proponent, "helpful". A negative one raises
    it: an opponent, "harmful". The first four methods are those of `captum.influence`, the last that of `dattri`:

    - `"tracin"` (TracInCP): sum over checkpoints t of eta_t grad loss(x; w_t) . grad loss(z; w_t). Cost: one backward
      pass for each sample, checkpoint and `batch_size` samples of x.
    - `"tracin_fast"` (TracInCPFast): the weight (without the bias) of the last linear layer alone, which needs no
      gradients of parameters.
    - `"influence_functions"` (ArnoldiInfluenceFunction): grad loss(x) . H^-1 grad loss(z), with the Hessian of the
      training loss, summed over samples, on its `rank` directions of largest curvature. These are found from 200
      products with the Hessian, each a pass over the training data.
    - `"influence_functions_exact"` (NaiveInfluenceFunction): the same from the whole Hessian, for small layers.
    - `"trak"` (TRAKAttributor): phi(x) (Phi^T Phi)^-1 phi(z) (1 - p(z)), where phi is the gradient of the log odds of
      the label, on `rank` random directions, Phi those of all training samples, and p the probability of the label.
      Factors are averaged over checkpoints, at best of models trained separately. Cost: a backward pass for each
      sample of x and of the training data, and checkpoint. It needs `pip install 'layerlens-torch[trak]'`.

    Without x it is self influence, that of each training sample on its own loss: samples that only they themselves
    explain come first, mislabeled ones among them.

    The model is differentiated in eval mode. Data is read in batches, again for each pass, so give training data that
    can be read again.

    Args:
        x: samples whose prediction is explained, as a tensor or a data set; None for self influence.
        labels: label of each sample of x, whose loss is explained: the truth, to ask what made an error; None takes
            those in x.
        training: the training set, with labels: pairs (x, label), or a `Data` with `labels=`.
        method: how influence is computed.
        checkpoints: states of the model during training: state dicts, `.safetensors` files, or files of
            `torch.save(model.state_dict(), ...)`, which are read without running code. None for the model as it is.
            Influence functions take one.
        learning_rates: learning rate at each checkpoint, for TracIn; None for 1 each.
        layers: layers whose parameters count; None for all of them. With `"tracin_fast"` the last linear layer.
        loss: `loss(output, labels)`, the loss of each sample `(batch,)`; None is cross-entropy for class indices, and
            half the squared distance for real numbers. With `"trak"` it is minus the log likelihood of the label.
        damping: number added to every curvature, for influence functions; None for 1e-3, or 1e-6 with the exact one.
            With `"trak"` it is added to the diagonal of Phi^T Phi; None for a millionth of the mean there.
        rank: number of directions: of largest curvature for influence functions, None for 50; random ones for
            `"trak"`, None for 512 or a quarter of the training samples. As many as parameters: no projection.
        memory: GiB that gradients may take. Batches become smaller to fit; what cannot be split is refused.

    Returns:
        An `Influence`: values `(samples of x, training samples)`.

    Raises:
        InputError: when labels are missing or do not fit, data can be read only once, or a checkpoint cannot be read.
        OptionError: when an option is out of range or belongs to another method, or too much memory would be needed.
        LayerNotFound: when no layer is selected.
        MissingPackage: when dattri is not installed, for `"trak"`.

    Source: Pruthi et al. 2020, "Estimating training data influence by tracing gradient descent"; Koh & Liang 2017;
    Schioppa et al. 2022 (Arnoldi); Park et al. 2023 (TRAK).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net, x, y = nn.Linear(2, 2), torch.randn(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> influence(net, x[:1], y[:1], training=Data(x, labels=y)).values.shape
        torch.Size([1, 6])
    """
    choose("method of influence", method, get_args(By))
    check_count("batch_size", batch_size)
    if rank is not None:
        check_count("rank", rank)
    check_seed(seed)
    states = listed(checkpoints)
    _check_options(method, states, learning_rates, damping, rank, memory, x is None and labels is not None)
    if method == "trak":
        need("dattri", "influence(method='trak')", "trak")
    rates = list(learning_rates or [1.0] * len(states))
    own = copy.deepcopy(model) if checkpoints is not None else model
    with borrowed(own), warnings.catch_warnings():
        for text in ("Unable to determine the number of batches", "To copy construct from a tensor"):  # captum's
            warnings.filterwarnings("ignore", text)
        load(own, states[0])
        fields: dict[str, Any] = {"batch_size": batch_size, "read": read, "progress": False}
        data = Data.of(training, **fields)
        data.check_rereadable(2 + len(states), "influence")
        tests = None if x is None else Data.of(x, labels, **fields)
        if tests is not None:
            tests.check_rereadable(2, "influence")
        scored = loss or usual_loss
        carrier, layer = _carrier(own, forward, layers, data, scored, method)
        own_labels = [torch.cat([y.cpu() for _, y in Pairs(one, own, "x")]) for one in (data, tests or data)]
        count = len(own_labels[0])
        rank = rank or (min(512, max(1, count // 4)) if method == "trak" else 50)
        rows = _rows(carrier, batch_size, memory, method, rank, count)
        data, tests = _smaller(data, rows), None if tests is None else _smaller(tests, rows)
        total = torch.zeros(0)
        with torch.enable_grad():
            if method == "trak":
                total = by_dattri(carrier, states, data, tests, loss, damping, rank, seed, progress)
            else:
                for state, rate in zip(track(states, "influence", enabled=progress), rates, strict=True):
                    load(own, state)
                    part = rate * _by_captum(method, carrier, layer, data, tests, scored, damping, rank, seed).double()
                    total = part if not len(total) else total + part
    if not bool(total.isfinite().all()):
        raise InputError(NOT_FINITE)
    settings: dict[str, Any] = {
        "checkpoints": len(states),
        "learning_rates": rates,
        "parameters": carrier.names,
        "batch_size": rows,
    }
    if not method.startswith("tracin"):
        settings |= {"damping": _damping(method, damping), "rank": rank, "seed": seed}
    return Influence(total.cpu(), own_labels[0], own_labels[1], x is None, method, settings, _explanation(method))


def _check_options(
    method: str, states: list[Any], rates: Any, damping: Any, rank: Any, memory: float, alone: bool
) -> None:
    tracin, hessian = method.startswith("tracin"), method.startswith("influence_functions")
    if alone:
        raise OptionError("labels= are those of x, and x is None: for self influence, labels are in the training data.")
    if hessian and len(states) > 1:
        raise OptionError(f"influence functions take one checkpoint, got {len(states)}; give the last, or 'tracin'.")
    if not tracin and rates is not None:
        raise OptionError("learning_rates= belongs to method='tracin' and 'tracin_fast'.")
    if tracin and (damping is not None or rank is not None):
        raise OptionError("damping= and rank= belong to method='influence_functions', its exact form, and 'trak'.")
    if rates is not None and len(rates) != len(states):
        raise OptionError(f"{len(rates)} learning rates for {len(states)} checkpoints; give one per checkpoint.")
    if damping is not None and not damping > 0:
        raise OptionError(f"damping must be above 0, got {damping!r}.")
    if not memory > 0:
        raise OptionError(f"memory must be above 0 GiB, got {memory!r}.")


def _carrier(
    model: nn.Module, forward: Forward | None, layers: Selection, data: Data, loss: Loss, method: str
) -> tuple[Carrier, str]:
    """Return the model with the chosen parameters that the loss depends on, and the path of the last linear layer.

    captum raises an error of torch for parameters that the loss does not depend on.

    Raises:
        OptionError: when the loss depends on none, or there is no last linear layer.
    """
    paths = list(Layers(model).select(layers)) if layers is not None else [""]
    inputs, labels = next(iter(Pairs(data, model, "the training data")))
    if method == "tracin_fast":
        paths = [_last_linear(model, forward, paths if layers is not None else None, inputs)]
    under = tuple(f"{path}." for path in paths if path)
    names = [
        name
        for name, one in model.named_parameters()
        if one.is_floating_point() and (not under or name.startswith(under))
    ]
    for name in names:
        model.get_parameter(name).requires_grad_(True)
    carrier = Carrier(model, forward, names)
    with torch.enable_grad():
        losses = check_loss(loss, carrier(inputs), labels)
        if losses.requires_grad and names:
            found = torch.autograd.grad(losses.sum(), list(carrier.parameters()), allow_unused=True)
            carrier.names = [name for name, one in zip(names, found, strict=True) if one is not None]
    if not losses.requires_grad or not carrier.names:
        where = "this model" if layers is None else f"layers {paths}"
        raise OptionError(f"influence: the loss depends on no parameter of {where}; select other layers=.")
    return carrier, paths[0]


def _last_linear(model: nn.Module, forward: Forward | None, chosen: list[str] | None, inputs: Any) -> str:
    """Return the path of the linear layer whose output is the output of the model.

    captum's TracInCPFast takes the gradient at the model's output for that at the layer's, without a check.

    Raises:
        OptionError: when there is none.
    """
    found = [name for name in last_linear(model, lambda: Carrier(model, forward, [])(inputs)) if name]
    found = [name for name in found if chosen is None or name in chosen]
    if not found:
        raise OptionError(
            "tracin_fast needs a linear layer whose output is the output of the model; "
            f"{'the selected layers are' if chosen else 'this model has'} not one. Take method='tracin' with layers=."
        )
    return str(found[-1])


def _rows(carrier: Carrier, batch_size: int, memory: float, method: str, rank: int, samples: int) -> int:
    """Return how many samples may be in a batch, so that their gradients fit.

    Raises:
        OptionError: when what cannot be split does not fit.
    """
    weights = list(carrier.parameters())
    count, each = sum(one.numel() for one in weights), max(one.element_size() for one in weights)
    most = int(memory * 2**30)
    held = {
        "influence_functions": (200 + rank) * count,
        "influence_functions_exact": 4 * count**2,
        "trak": 3 * samples * min(rank, count) + min(rank, 100) * count * (rank < count),  # of float64
    }.get(method, 0)
    each = 8 if method == "trak" else each
    if held * each > most:
        biggest = "layers=['...'] (a last layer is the usual choice)"
        raise OptionError(
            f"method={method!r} would keep {held * each / 2**30:.1f} GiB for {count:,} parameters, and memory={memory} "
            f"GiB. Select fewer parameters with {biggest}, raise memory=, or take method='tracin'."
        )
    if method == "tracin_fast":
        return batch_size
    return max(1, min(batch_size, (most - held * each) // (4 * count * each)))  # x and z, each listed and stacked


def _smaller(data: Data, rows: int) -> Data:
    """Return a data set in batches of at most `rows`."""
    return Data(data.samples, data.labels, min(rows, data.batch_size or rows), data.batched, data.read, False)


def _damping(method: str, damping: float | None) -> float | str:
    usual: dict[str, float | str] = {
        "influence_functions": 1e-3,
        "influence_functions_exact": 1e-6,
        "trak": "1e-6 of the mean",
    }
    return usual[method] if damping is None else damping


def _by_captum(
    method: str,
    carrier: Carrier,
    layer: str,
    data: Data,
    tests: Data | None,
    loss: Loss,
    damping: float | None,
    rank: int,
    seed: int,
) -> torch.Tensor:
    """Return the influences `(x, training)` at the model as it is; `(1, training)` of each on itself."""
    from captum.influence import TracInCP, TracInCPFast
    from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction
    from captum.influence._core.influence_function import NaiveInfluenceFunction

    loader = Pairs(data, carrier.model, "the training data").loader()
    known: dict[str, Any] = {"loss_fn": Reduced(loss, "none"), "batch_size": None}
    here = {"checkpoints_load_func": lambda model, state: 1.0}  # the state is loaded by the caller
    calculator: Any
    if method == "tracin":
        calculator = TracInCP(carrier, loader, [0], **here, **known)
    elif method == "tracin_fast":
        known |= {"loss_fn": Reduced(loss, "sum")}
        linear = carrier.model.get_submodule(layer)
        calculator = TracInCPFast(carrier, linear, loader, [0], **here, **known)
    else:
        curved: dict[str, Any] = {"projection_dim": rank, "hessian_reg": _damping(method, damping), "seed": seed}
        kind = NaiveInfluenceFunction
        if (
            method == "influence_functions"
        ):  # captum's tolerance of 0.1 leaves out directions: r = .81 with the exact ones
            kind, curved = ArnoldiInfluenceFunction, {**curved, "arnoldi_tol": 1e-6}
        calculator = kind(carrier, loader, 0, **here, **known, **curved)
    if tests is None:
        alone: torch.Tensor = calculator.self_influence().detach()[None]
        return alone
    pairs = Pairs(tests, carrier.model, "x")
    if not method.startswith("tracin"):  # TracInCP would hold the gradients of all of x at once; Fast takes one batch
        found: torch.Tensor = calculator.influence(pairs.loader()).detach()
        return found
    return torch.cat([calculator.influence((inputs, labels)).detach() for inputs, labels in pairs])


def _explanation(method: str) -> tuple[str, str]:
    means = "Positive: the training sample lowers the loss of the explained one; negative: it raises it."
    limits = "It is a linear estimate at one state of the model, not what training without the sample would give."
    if method.startswith("tracin"):
        limits = "It adds up gradients at the checkpoints given; samples with large losses weigh more than others."
    if method == "trak":
        limits = "It is a linear model of the log odds at the given checkpoints, on random directions of the gradients."
    return means, limits
