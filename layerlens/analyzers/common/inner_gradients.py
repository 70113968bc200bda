"""Models that differentiate inside of their forward: forces of an energy, scores of a density, physics nets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

T = TypeVar("T")


class InnerGradients:
    """Run a model so that `torch.autograd.grad` inside of its forward works, whatever the grad mode around it.

    A forward pass without gradients runs with them if the model asks for some, and what the model differentiates keeps
    its graph (`create_graph=True`), as the gradient of the score needs it. The first run finds out whether that is so;
    other models are then run as they are.
    """

    def __init__(self) -> None:
        self._used: bool | None = None

    def run(self, run: Callable[[Mapping[str, torch.Tensor]], T], values: Mapping[str, torch.Tensor]) -> T:
        """Return `run(values)`.

        Args:
            run: runs the model on the values of its leaves.
            values: tensors by name.

        Raises:
            RuntimeError: as the model raises it.
        """
        if self._used is False:
            return run(values)
        keeping = _KeepGraph()
        try:
            if not self._used or torch.is_grad_enabled():
                with keeping:
                    return run(values)
        except RuntimeError as error:
            if torch.is_grad_enabled() or not keeping.called or "not require grad" not in str(error):
                raise
        finally:
            self._used = self._used or keeping.called
        with torch.enable_grad(), keeping:
            return run({name: value.detach().requires_grad_() for name, value in values.items()})


class _KeepGraph(TorchFunctionMode):
    """Have `torch.autograd.grad` keep the graph of what it returns, and note that it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.called = False

    def __torch_function__(
        self, function: Callable[..., Any], kinds: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is torch.autograd.grad:
            self.called = True
            return function(*args[:4], **{**(kwargs or {}), "create_graph": True})
        return function(*args, **(kwargs or {}))
