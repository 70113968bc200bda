"""Models that differentiate inside of their forward: forces of an energy, scores of a density, physics nets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from layerlens.analyzers.graph.cuts import Cuts
from layerlens.errors import InputError, warn

from .directional_slope import along, moved_from_kinks, slope_of

T = TypeVar("T")

MISSED = 0.05
"""Share of the slope that a gradient may miss where the model cuts a signal, beyond the error of the differences."""


class InnerGradients:
    """Run a model so that `torch.autograd.grad` inside of its forward works, whatever the grad mode around it.

    A forward pass without gradients runs with them if the model asks for some, and what the model differentiates keeps
    its graph (`create_graph=True`), as the gradient of the score needs it. The first run finds out whether that is so;
    other models are then run as they are.

    Attributes:
        watching: whether the first run with gradients from now on notes in `cuts` what cuts a signal.
        cuts: what does.
    """

    def __init__(self) -> None:
        self.watching = False
        self._used: bool | None = None
        self._watched = False
        self.cuts: list[str] = []

    def take_cuts(self) -> list[str]:
        """Return `cuts`, and forget them: one warning is enough."""
        cuts, self.cuts = self.cuts, []
        return cuts

    @contextlib.contextmanager
    def left_to(self, mode: Any) -> Iterator[None]:
        """Run the model as it is in the block: another mode keeps graphs, and sees what cuts a signal.

        Args:
            mode: a mode that is on; its attribute `differentiates` says afterwards whether the model asked for some.

        Yields:
            Nothing.
        """
        self._used, self._watched = False, True
        yield
        self._used = mode.differentiates

    def run(self, run: Callable[[Mapping[str, torch.Tensor]], T], values: Mapping[str, torch.Tensor]) -> T:
        """Return `run(values)`.

        Args:
            run: runs the model on the values of its leaves.
            values: tensors by name.

        Raises:
            RuntimeError: as the model raises it.
        """
        watches = self.watching and torch.is_grad_enabled() and not self._watched
        if self._used is False and not watches:
            return run(values)
        keeping = _KeepGraph(Cuts(_has_graph, str) if watches else None)
        try:
            if not self._used or torch.is_grad_enabled():
                with keeping:
                    return run(values)
        except RuntimeError as error:
            if torch.is_grad_enabled() or not keeping.called or "not require grad" not in str(error):
                raise
        finally:
            self._used = self._used or keeping.called
            if keeping.cuts is not None:
                self._watched, self.cuts = True, keeping.cuts.ways()
        with torch.enable_grad(), keeping:
            return run({name: value.detach().requires_grad_() for name, value in values.items()})


class _KeepGraph(TorchFunctionMode):
    """Have `torch.autograd.grad` keep the graph of what it returns, and note that it was called."""

    def __init__(self, cuts: Cuts | None) -> None:
        super().__init__()
        self.called, self.cuts = False, cuts

    def __torch_function__(
        self, function: Callable[..., Any], kinds: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.autograd.grad:
            self.called = True
            return function(*args[:4], **{**kwargs, "create_graph": True})
        result = function(*args, **kwargs)
        if self.cuts is not None:
            self.cuts.see(function, args, kwargs, result)
        return result


def _has_graph(tensor: torch.Tensor) -> bool:
    return tensor.requires_grad and (tensor.is_leaf or tensor.grad_fn is not None)


def warn_of_cut(
    ways: list[str],
    score_at: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    values: Mapping[str, torch.Tensor],
    slopes: Mapping[str, torch.Tensor],
) -> None:
    """Warn if the model cuts a signal and the gradient differs from finite differences along a random direction.

    What is cut may not matter, such as the maximum that a softmax subtracts; the differences decide.

    Args:
        ways: what cuts it.
        score_at: from values to scores `(n,)`.
        values: values of the leaves, `(n, ...)`.
        slopes: their gradients.
    """
    draw = torch.Generator().manual_seed(0)
    starts = {name: value.detach() for name, value in values.items()}
    steps = {name: moved_from_kinks(value, draw)[1] for name, value in starts.items()}

    def moved(step: float) -> torch.Tensor:
        with torch.no_grad():
            return score_at(along(starts, steps, step))

    change, error = slope_of(moved, next(iter(starts.values())).dtype)
    parts = [(slopes[name].double() * steps[name].double()).flatten(1).sum(dim=1) for name in starts]
    own = torch.stack(parts).sum(dim=0)
    missed = (own - change).abs() - error
    worst = int(missed.argmax())
    if float(missed[worst]) > MISSED * max(abs(float(own[worst])), abs(float(change[worst]))):
        warn(
            f"the model cuts a signal (by {', '.join(ways)}), and the gradient leaves out what passes there: along a "
            f"random direction it is {float(own[worst]):.3g} where the score changes by {float(change[worst]):.3g}. "
            "layerlens.check_gradient(model, x) names the layer."
        )


@contextlib.contextmanager
def backward_pass(model: nn.Module) -> Iterator[None]:
    """Run a backward pass through `model`: an error that its own code causes says so.

    Yields:
        Nothing.

    Raises:
        RuntimeError: as autograd raises it.
        InputError: when an operation of the model wrote into what autograd needs, or checkpoints by re-entering.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "modified by an inplace operation" in text:
            why = "one of its operations writes into a tensor that the backward pass needs"
        elif "use_reentrant" in text:
            why = "it checkpoints with use_reentrant=True; use_reentrant=False works"
        else:
            raise
        raise InputError(
            f"{type(model).__name__} cannot be differentiated, by layerlens or by loss.backward(): {why} ({text[:200]})"
        ) from error
