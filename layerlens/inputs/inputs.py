"""Inputs of models: tensors, tuples, dicts, encodings."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import weakref
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from layerlens.errors import AGAIN, InputError, LayerLensError
from layerlens.model.placement import offloaded
from layerlens.model.trees import Held, describe, map_tensors, named_tensors

Input: TypeAlias = "torch.Tensor | np.ndarray[Any, Any] | str | Sequence[Any] | Mapping[str, Any] | Inputs"
"""Input of a model: a tensor or array; a tuple of arguments; a dict or encoding of keyword arguments; with a tokenizer
also a text or a list of texts."""

Forward: TypeAlias = Callable[..., Any]
"""`forward(model, *args, **kwargs)`, called instead of the model."""

_DIFFERENTIATING: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Models that differentiate inside of their forward: forces of an energy, physics nets."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The arguments of one call of a model.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        texts: what each token of `input_ids` reads, by sample, where they were made of texts and it is known.
        names: names of the positional arguments, where they are known.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    texts: list[list[str]] | None = dataclasses.field(default=None, compare=False, repr=False)
    names: tuple[str, ...] = ()

    def named_for(self, model: nn.Module, forward: Forward | None = None) -> Inputs:
        """Return the arguments with the names that a model, or `forward` after the model, gives the positional ones."""
        if not self.args or self.names:
            return self
        try:
            parameters = list(inspect.signature(model.forward if forward is None else forward).parameters.values())
        except (TypeError, ValueError):  # a function without a signature
            return self
        named = itertools.takewhile(lambda one: one.kind is one.POSITIONAL_OR_KEYWORD, parameters)
        return dataclasses.replace(self, names=tuple(one.name for one in named)[forward is not None :])

    def run(self, model: nn.Module, forward: Forward | None = None) -> Any:
        """Call the model, or `forward(model, *args, **kwargs)`.

        The model gets copies, because it may write into its input: tensors, containers, and objects such as a cache.
        Without gradients, one that differentiates inside of its forward fails once; it is then known, and what it runs
        has gradients, which its output has not.

        Raises:
            InputError: when the model's weights were never loaded, or an object in the input cannot be copied.
            RuntimeError, TypeError, ValueError, IndexError: errors of the model, with a note on the input.
        """
        own = self.map(torch.clone, held=lambda tensor: tensor.detach().clone())
        try:
            if torch.is_grad_enabled():
                return own._call(model, forward)
            if model in _DIFFERENTIATING:
                with torch.enable_grad():
                    output = own.map(lambda one: one.requires_grad_(one.is_floating_point()))._call(model, forward)
            else:
                output = own._call(model, forward)
            if not any(tensor.requires_grad for _, tensor in named_tensors(output)):
                return output
            return map_tensors(output, torch.detach)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            if "meta" in str(error) and any(part.is_meta for part in model.parameters()) and not offloaded(model):
                raise InputError(
                    f"{type(model).__name__} has no weights: they are on the meta device, which keeps shapes alone. "
                    f"Load them (load_state_dict(..., assign=True), or from_pretrained). ({str(error)[:200]})"
                ) from error
            if "not require grad" in str(error) and not torch.is_grad_enabled() and model not in _DIFFERENTIATING:
                _DIFFERENTIATING.add(model)
                setattr(error, AGAIN, True)
                if hasattr(error, "add_note"):
                    error.add_note("The model differentiates inside of its forward. That is known now: call it again.")
            if hasattr(error, "add_note") and not isinstance(error, LayerLensError):  # Python 3.11 and newer show notes
                error.add_note(f"The model was run on {self}; the first axis is the batch.")
            raise

    def _call(self, model: nn.Module, forward: Forward | None) -> Any:
        return model(*self.args, **self.kwargs) if forward is None else forward(model, *self.args, **self.kwargs)

    def __str__(self) -> str:
        """Describe the tensors by name, type and shape; a single positional one has no name."""
        return ", ".join(f"{'' if name == '0' else f'{name} '}{describe(x)}" for name, x in self.tensors().items())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return every tensor by name: a keyword or a position, with dots for nested ones."""
        named: dict[str, Any] = {str(position): value for position, value in enumerate(self.args)}
        return dict(named_tensors(named | self.kwargs))

    def floating(self) -> dict[str, torch.Tensor]:
        """Return the tensors that can have a gradient, by name; masks (boolean or integer) and token ids cannot."""
        return {name: tensor for name, tensor in self.tensors().items() if tensor.is_floating_point()}

    def replace(self, tensors: Mapping[str, torch.Tensor]) -> Inputs:
        """Return the arguments with the named tensors replaced; the containers of the caller are not changed."""
        names = iter(self.tensors())
        args, kwargs = map_tensors((list(self.args), self.kwargs), lambda old: tensors.get(next(names), old))
        return Inputs(tuple(args), kwargs, names=self.names)

    def map(self, function: Callable[[torch.Tensor], torch.Tensor], held: Held | None = None) -> Inputs:
        """Return the arguments with `function` applied to every tensor, and `held` to those inside of other objects.

        Args:
            function: tensor -> tensor.
            held: the same for tensors that objects such as a cache hold; None leaves these objects as they are.

        Raises:
            InputError: when such an object cannot be copied.
        """
        args, kwargs = map_tensors((list(self.args), self.kwargs), function, held)
        return Inputs(tuple(args), kwargs, names=self.names)

    def to(self, device: torch.device | None) -> Inputs:
        """Return the arguments on a device; None keeps theirs."""
        if device is None:
            return self
        return self.map(lambda tensor: tensor.to(device), held=lambda tensor: tensor.detach().to(device))

    @property
    def batch(self) -> int:
        """The number of samples: the length of the first axis, the same for every tensor with axes.

        Raises:
            InputError: when there is no tensor, or two disagree.
        """
        sizes = {name: tensor.shape[0] for name, tensor in self.tensors().items() if tensor.ndim}
        if not sizes:
            raise InputError("the input has no tensor with a batch axis; give tensors of shape (batch, ...).")
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name}: {size}" for name, size in sizes.items())
            raise InputError(f"the inputs differ in their first axis, which must be the batch: {listed}.")
        return next(iter(sizes.values()))

    def rows(self, index: torch.Tensor, *, but: Container[str] = ()) -> Inputs:
        """Return the samples `index`, shape (n,), of every tensor with a batch axis, except those named in `but`.

        Tensors inside of objects such as a cache count where they have that axis and another, or the batch is above 1.
        """
        size, names = self.batch, iter(self.tensors())

        def chosen(tensor: torch.Tensor) -> torch.Tensor:
            if next(names) in but or not tensor.ndim or tensor.shape[0] != size:
                return tensor
            return tensor[index.to(tensor.device)]

        def held(tensor: torch.Tensor) -> torch.Tensor:
            own = tensor.ndim and len(tensor) == size and (tensor.ndim > 1 or size > 1)
            return tensor.detach()[index.to(tensor.device)] if own else tensor.detach().clone()

        return self.map(chosen, held)


def as_inputs(x: Input) -> Inputs:
    """Read the input of a model.

    A tensor (or numpy array) is one positional argument; a tuple or list is several; a mapping, such as the encoding of
    a tokenizer, is keyword arguments. The tensors are not copied and not changed.

    Args:
        x: the input.

    Raises:
        InputError: when it has no tensor, an empty one or NaN, or is text.

    Example:
        >>> as_inputs({"a": torch.ones(2, 3)}).batch
        2
    """
    if isinstance(x, Inputs):
        return x
    if isinstance(x, str) or (isinstance(x, (list, tuple)) and x and all(isinstance(part, str) for part in x)):
        raise InputError("text needs a tokenizer: Lens(model, tokenizer=...), or pass the encoding as a dict.")
    if isinstance(x, torch.Tensor):
        given = Inputs((x,), {})
    elif isinstance(x, np.ndarray):
        given = Inputs((_from_numpy(x),), {})
    elif isinstance(x, (tuple, list)):
        given = Inputs(tuple(_from_numpy(part) if isinstance(part, np.ndarray) else part for part in x), {})
    elif isinstance(x, Mapping):
        parts = {key: _from_numpy(part) if isinstance(part, np.ndarray) else part for key, part in x.items()}
        if not all(isinstance(key, str) for key in parts):
            raise InputError(f"a dict input is passed as keyword arguments; its keys must be str, got {list(parts)}.")
        given = Inputs((), parts)
    else:
        raise InputError(f"cannot pass {describe(x)} to a model. Give a tensor, a tuple of tensors, or a dict.")
    tensors = given.tensors()
    if not tensors:
        raise InputError(f"the input ({describe(x)}) holds no tensor.")
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            raise InputError(f"input {name!r} is empty: {describe(tensor)}.")
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            raise InputError(
                f"input {name!r} ({describe(tensor)}) holds NaN; every number computed from it would be NaN."
            )
    return given


def _from_numpy(array: np.ndarray[Any, Any]) -> torch.Tensor:
    if array.dtype.kind not in "fiub":
        raise InputError(f"cannot make a tensor of a numpy array of dtype {array.dtype}.")
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array.copy())
