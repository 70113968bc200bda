"""Monte Carlo dropout: a model whose dropout is on, with the same units dropped in every pass and for every sample."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from layerlens.errors import InputError, warn
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.trees import first_tensor, named_tensors

WHOLE: Final = {
    "dropout": 0, "alpha_dropout": 0, "dropout1d": 1, "dropout2d": 2, "dropout3d": 3, "feature_alpha_dropout": -1
}  # fmt: skip
"""Function of torch -> axes of places of a channel that is dropped whole; 0: each number by itself; -1: all of them."""
FUNCTIONS: Final[Mapping[Any, str]] = {getattr(functional, name): name for name in WHOLE} | {
    torch.dropout: "dropout",
    torch.alpha_dropout: "alpha_dropout",
    torch.feature_alpha_dropout: "feature_alpha_dropout",
}
NEGATIVE: Final = -1.7580993408473766
"""What alpha dropout writes into dropped units: the limit of SELU for very negative values."""
OTHERS: Final = 'Give an ensemble, models=[...], or the data that it was trained on: models="laplace", training=data.'


@dataclasses.dataclass
class _Call:
    """A call of dropout in a pass: its shape for one sample, and the axis that grows with the number of samples."""

    shape: tuple[int, ...]
    axis: int | None = None


class WithDropout:
    """`forward(model, ...)` that runs a model with its dropout on.

    Draw number k drops the same units in every pass and for every sample: it is one model of many. Nothing else of the
    model changes: all modules stay in eval mode, and no random generator is used but one of its own. Dropout is what
    calls a function of torch for it, as the modules do.

    Args:
        forward: what to call instead of the model; None for the model.
        model: the model.
        seed: seed of all draws.
    """

    def __init__(self, forward: Forward | None, model: nn.Module, seed: int) -> None:
        self.inner, self.seed, self.number = forward, seed, 0
        self.calls: list[_Call] = []
        self.masks: dict[tuple[int, tuple[int, ...]], torch.Tensor] = {}
        with contextlib.suppress(TypeError, ValueError):  # functions without a signature
            known = inspect.signature(model.forward if forward is None else forward)
            if forward is None:
                first = inspect.Parameter("layerlens_model", inspect.Parameter.POSITIONAL_ONLY)
                known = inspect.Signature([first, *known.parameters.values()])
            self.__signature__ = known  # by which arguments get their names

    def __call__(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the model with the units of the present draw dropped."""
        rows = next((len(tensor) for _, tensor in named_tensors((args, kwargs)) if tensor.ndim), 1)
        with _Dropping(lambda number, tensor, kind, p: self._factor(number, tensor, kind, p, rows)):
            return self._run(model, args, kwargs)

    def chosen(self, number: int) -> WithDropout:
        """Return itself, with another draw."""
        self.number, self.masks = number, {}
        return self

    def prepare(self, model: nn.Module, inputs: Inputs) -> None:
        """Find the calls of dropout, and the axis of each that counts samples, from passes with one and two samples.

        Raises:
            InputError: when there is no dropout, or samples do not pass it alike.

        Warns:
            UserWarning: when some dropout is inside of attention or recurrent layers, and stays off.
        """
        one, two = (self._shapes(model, inputs, rows) for rows in (1, 2))
        if not one:
            raise InputError(
                f"no call of dropout was seen in a pass of {type(model).__name__} (torch's modules and functions, with "
                f"p above 0, that are called in eval mode as well). {OTHERS}"
            )
        self.calls = [_Call(shape) for shape in one]
        for call, more in zip(self.calls, two, strict=False):
            grown = [axis for axis, (a, b) in enumerate(zip(call.shape, more, strict=False)) if a != b]
            if len(call.shape) != len(more) or len(grown) > 1:
                raise InputError(f"a dropout of {call.shape} has {more} for two samples: no axis counts them. {OTHERS}")
            call.axis = grown[0] if grown else None
        if two:
            self.chosen(0)
            with torch.no_grad():
                found = first_tensor(inputs.rows(torch.tensor([0, 0])).run(model, self))
            if found is not None and found.ndim and len(found) == 2 and not _alike(found[0], found[1]):
                raise InputError(
                    f"two equal samples get different outputs from {type(model).__name__} with the same units dropped: "
                    f"it draws numbers of its own, or mixes samples. {OTHERS}"
                )
        self._warn_of_inner(model)

    def _shapes(self, model: nn.Module, inputs: Inputs, rows: int) -> list[tuple[int, ...]]:
        """The shapes of the calls of dropout in a pass; none where the model does not take two samples.

        Raises:
            InputError: when it does not take one.
        """
        shapes: list[tuple[int, ...]] = []

        def keep(number: int, tensor: torch.Tensor, kind: str, p: float) -> tuple[Any, Any]:
            shapes.append(tuple(tensor.shape))
            return 1.0, 0.0

        def watched(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            with _Dropping(keep):
                return self._run(model, args, kwargs)

        try:
            with torch.no_grad():
                inputs.rows(torch.zeros(rows, dtype=torch.long)).run(model, watched)
        except Exception as error:  # whatever a model raises that takes one sample
            if rows == 1:
                raise InputError(
                    f"{type(model).__name__} does not run on one sample ({' '.join(str(error).split())[:120]}), so it "
                    f"is not known which units of its dropout belong to which sample. {OTHERS}"
                ) from error
            return []
        return shapes

    def _run(self, model: nn.Module, args: Any, kwargs: Any) -> Any:
        return model(*args, **kwargs) if self.inner is None else self.inner(model, *args, **kwargs)

    def _factor(self, number: int, tensor: torch.Tensor, kind: str, p: float, rows: int) -> tuple[Any, Any]:
        """What a call multiplies its input with, and what it adds.

        Raises:
            InputError: when a pass has more calls than the first one.
        """
        if number >= len(self.calls):
            raise InputError(f"a pass called dropout more than {len(self.calls)} times, as the first one did. {OTHERS}")
        axis = self.calls[number].axis
        shape = list(tensor.shape)
        if axis is not None:
            shape[axis] //= rows
        key = number, tuple(shape)
        if key not in self.masks:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.number) * 1_000_003 + number)
            self.masks[key] = torch.rand(_dropped_together(shape, kind), generator=generator) >= p
        mask = self.masks[key].to(tensor.device)
        if axis is not None and mask.shape[axis] > 1:
            mask = torch.cat([mask] * rows, dim=axis)
        if "alpha" not in kind:
            return mask.to(tensor.dtype) / (1 - p) if p < 1 else torch.zeros_like(mask, dtype=tensor.dtype), 0.0
        scale = ((1 - p) * (1 + p * NEGATIVE**2)) ** -0.5
        kept = mask.to(tensor.dtype)
        return scale * kept, scale * NEGATIVE * (1 - p - kept)

    def _warn_of_inner(self, model: nn.Module) -> None:
        inner = [
            path for path, one in model.named_modules()
            if (isinstance(one, nn.MultiheadAttention) and one.dropout > 0)
            or (isinstance(one, nn.RNNBase) and one.dropout > 0 and one.num_layers > 1)
        ]  # fmt: skip
        if inner:
            shown = ", ".join(inner[:3]) + (f" and {len(inner) - 3} more" if len(inner) > 3 else "")
            warn(
                f"dropout inside of {shown} stays off: of attention weights, and between the layers of a recurrent one."
            )


class _Dropping(TorchFunctionMode):
    """Calls of dropout multiply and add what `factor(number of the call, tensor, kind, p)` returns."""

    def __init__(self, factor: Callable[[int, torch.Tensor, str, float], tuple[Any, Any]]) -> None:
        super().__init__()
        self.factor, self.number = factor, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch."""
        kind = FUNCTIONS.get(func)
        if kind is None:
            return func(*args, **(kwargs or {}))
        tensor, p, inplace = _arguments(*args, **(kwargs or {}))
        if p == 0:
            return tensor
        times, plus = self.factor(self.number, tensor, kind, p)
        self.number += 1
        made = tensor.mul_(times) if inplace else tensor * times
        return made if isinstance(plus, float) else made.add_(plus) if inplace else made + plus


def _arguments(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, train: bool = True
) -> tuple[torch.Tensor, float, bool]:
    """The input of a dropout, its p, and whether it writes into the input; it is on, whatever the mode of the model."""
    return input, p, inplace


def _dropped_together(shape: list[int], kind: str) -> list[int]:
    """The shape of a mask: numbers of a channel that is dropped whole share one."""
    places = WHOLE[kind]
    if places == 0:
        return shape
    kept = 1 if len(shape) == places + 1 and kind != "dropout2d" else 2  # without a batch axis, channels come first
    return [size if axis < kept else 1 for axis, size in enumerate(shape)]


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return math.isfinite(float(one.sum())) and torch.allclose(one, other, rtol=1e-3, atol=1e-5 * float(one.abs().max()))
