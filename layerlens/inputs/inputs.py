"""Inputs of models: tensors, tuples, dicts, encodings."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
import re
import types
import weakref
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import nn

from layerlens.errors import AGAIN, InputError, LayerLensError, choose
from layerlens.model.placement import offloaded
from layerlens.model.trees import Held, describe, map_tensors, named_tensors
from layerlens.turns import raise_held

from .misfit import explained
from .tables import Index, Names, Table, is_frame, is_series, read_table

if TYPE_CHECKING:
    from PIL.Image import Image

Input: TypeAlias = (
    "torch.Tensor | np.ndarray[Any, Any] | Table | Image | Path | str | Sequence[Any] | Mapping[str, Any] | Inputs"
)
"""Input of a model: a tensor, array or DataFrame, or a Series, which is one sample; a tuple of arguments; a dict or
encoding of keyword arguments; with a tokenizer also a text, with a transform also a picture or its file, or lists."""

Hold: TypeAlias = "str | int | Sequence[str | int] | None"
"""Names or positions of inputs that are held fixed."""

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
        features: names of the features of an input, by its name, where they are known: the columns of a DataFrame.
        index: names of the samples, where they are known: the index of a DataFrame.
        held: names of the tensors that are held fixed, see `holding`.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    texts: list[list[str]] | None = dataclasses.field(default=None, compare=False, repr=False)
    names: tuple[str, ...] = ()
    features: dict[str, Names] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    index: Index | None = dataclasses.field(default=None, compare=False, repr=False)
    held: tuple[str, ...] = dataclasses.field(default=(), compare=False, repr=False)

    def named_for(self, model: nn.Module, forward: Forward | None = None) -> Inputs:
        """Return the arguments with the names that a model, or `forward` after the model, gives the positional ones."""
        if not self.args or self.names:
            return self
        names = _positional(model.forward if forward is None else forward)
        return dataclasses.replace(self, names=names[forward is not None :]) if names else self

    def run(self, model: nn.Module, forward: Forward | None = None) -> Any:
        """Call the model, or `forward(model, *args, **kwargs)`.

        The model gets copies, because it may write into its input: tensors, containers, and objects such as a cache.
        Without gradients, one that differentiates inside of its forward fails once; it is then known, and what it runs
        has gradients, which its output has not.

        Raises:
            InputError: when the model's weights were never loaded, an object in the input cannot be copied, or the
                input is known not to fit the model (its axes, dtype, device, range or number).
            RuntimeError, TypeError, ValueError, IndexError: other errors of the model, with a note on the input.
        """
        own = self.map(torch.clone, held=lambda tensor: tensor.detach().clone())
        try:
            if torch.is_grad_enabled():
                return own.call(model, forward)
            if model in _DIFFERENTIATING:
                with torch.enable_grad():
                    output = own.map(lambda one: one.requires_grad_(one.is_floating_point())).call(model, forward)
            else:
                output = own.call(model, forward)
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
            elif not isinstance(error, LayerLensError):
                advice = explained(model, self, forward, error)
                if advice is not None:
                    raise advice from error
            if hasattr(error, "add_note") and not isinstance(error, LayerLensError):  # Python 3.11 and newer show notes
                error.add_note(f"The model was run on {self}; the first axis is the batch.")
            raise

    def call(self, model: nn.Module, forward: Forward | None) -> Any:
        """Call the model on these very tensors, see `run`."""
        raise_held()
        return model(*self.args, **self.kwargs) if forward is None else forward(model, *self.args, **self.kwargs)

    def __str__(self) -> str:
        """Describe the tensors by name, type and shape; a single positional one has no name."""
        return ", ".join(f"{'' if name == '0' else f'{name} '}{describe(x)}" for name, x in self.tensors().items())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return every tensor by name: a keyword or a position, with dots for nested ones."""
        named: dict[str, Any] = {str(position): value for position, value in enumerate(self.args)} | self.kwargs
        plain = all(isinstance(value, torch.Tensor) for value in named.values())
        return named if plain else dict(named_tensors(named))

    def floating(self) -> dict[str, torch.Tensor]:
        """Return the tensors that can have a gradient, by name; masks (boolean or integer) and token ids cannot."""
        return {name: tensor for name, tensor in self.tensors().items() if tensor.is_floating_point()}

    def replace(self, tensors: Mapping[str, torch.Tensor]) -> Inputs:
        """Return the arguments with the named tensors replaced; the containers of the caller are not changed."""
        names = iter(self.tensors())
        if self._plain():
            return self._of([tensors.get(name, old) for name, old in zip(names, self.args, strict=True)], {})
        return self._of(*map_tensors((list(self.args), self.kwargs), lambda old: tensors.get(next(names), old)))

    def _plain(self) -> bool:
        """Whether it is tensors by position, and nothing else."""
        return not self.kwargs and all(isinstance(one, torch.Tensor) for one in self.args)

    def _of(self, args: list[Any], kwargs: dict[str, Any]) -> Inputs:
        """Other arguments with the same names."""
        names = {name: getattr(self, name) for name in ("names", "features", "index", "held")}
        return Inputs(tuple(args), kwargs, **names)

    def find(self, name: str | int, what: str = "input") -> list[str]:
        """Return the tensors of an input given by name; of a positional one also by position.

        Args:
            name: name or position.
            what: what it names, for errors.

        Raises:
            OptionError: when there is no such input.
        """
        known: dict[str, list[str]] = {}
        for tensor in self.tensors():
            first, *rest = tensor.split(".")
            place = int(first) if first.isdigit() else len(self.names)
            for start in dict.fromkeys([first, *self.names[place : place + 1]]):
                for stop in range(len(rest) + 1):
                    known.setdefault(".".join([start, *rest[:stop]]), []).append(tensor)
        return known[choose(what, str(name), known)]

    def holding(self, hold: Hold) -> Inputs:
        """Return the arguments with some inputs held fixed: no method attributes to them or changes them.

        Args:
            hold: name of an input, of a positional one also its position; or a list of those.

        Raises:
            OptionError: when there is no such input.
        """
        if hold is None:
            return self
        listed = [hold] if isinstance(hold, (str, int)) else hold
        held = [name for one in listed for name in self.find(one, "input in hold=")]
        return dataclasses.replace(self, held=tuple(dict.fromkeys([*self.held, *held])))

    def map(self, function: Callable[[torch.Tensor], torch.Tensor], held: Held | None = None) -> Inputs:
        """Return the arguments with `function` applied to every tensor, and `held` to those inside of other objects.

        Args:
            function: tensor -> tensor.
            held: the same for tensors that objects such as a cache hold; None leaves these objects as they are.

        Raises:
            InputError: when such an object cannot be copied.
        """
        if self._plain():
            return self._of([function(one) for one in self.args], {})
        return self._of(*map_tensors((list(self.args), self.kwargs), function, held))

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
            one, fixed = [name for name, size in sizes.items() if size == 1], ""
            if len(one) == 1 and len(set(sizes.values())) == 2 and all(name.isidentifier() for name in sizes):
                given = ", ".join(f"{name}={name}" for name in sizes)
                fixed = (
                    f"For one {one[0]} with all of the others, keep these in forward=: Lens(model, forward=lambda "
                    f"model, {one[0]}: model({given})). "
                )
            raise InputError(
                f"the inputs differ in their first axis, which must be the batch: {listed}. {fixed}Where no axis "
                "counts samples, as for the nodes and edges of a graph, give one sample: (nodes[None], edges[None]), "
                "with Lens(model, forward=lambda model, nodes, edges: "
                "torch.stack([model(n, e) for n, e in zip(nodes, edges)]))."
            )
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

        some = self.map(chosen, held)
        if self.index is None or len(self.index) != size:
            return some
        return dataclasses.replace(some, index=tuple(self.index[row] for row in index.tolist()))


_names: weakref.WeakKeyDictionary[Any, tuple[str, ...]] = weakref.WeakKeyDictionary()


def _positional(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the positional parameters of a function, read once for a method of a class; none if unknown."""
    method = function.__func__ if isinstance(function, types.MethodType) else None
    if isinstance(method, types.FunctionType) and method in _names:
        return _names[method]
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function without a signature
        return ()
    named = itertools.takewhile(lambda one: one.kind is one.POSITIONAL_OR_KEYWORD, parameters)
    names = tuple(one.name for one in named)
    if isinstance(method, types.FunctionType):
        _names[method] = names
    return names


def arguments(model: nn.Module, forward: Forward | None = None) -> float:
    """Return how many positional arguments a model, or `forward` after the model, takes at most."""
    try:
        parameters = inspect.signature(model.forward if forward is None else forward).parameters.values()
    except (TypeError, ValueError):  # a function without a signature
        return math.inf
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return math.inf
    places = sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters)
    return places - (forward is not None)


def takes_list(model: nn.Module, forward: Forward | None = None) -> bool:
    """Return whether the first argument of a model, or of `forward` after the model, is declared a list of tensors."""
    try:
        parameters = [*inspect.signature(model.forward if forward is None else forward).parameters.values()]
    except (TypeError, ValueError):  # a function without a signature
        return False
    first = parameters[forward is not None :][:1]
    return any(re.match(r"(typing\.)?(list|Sequence|Iterable)\[.*Tensor", str(one.annotation), re.I) for one in first)


def as_inputs(x: Input, dtype: torch.dtype | None = None) -> Inputs:
    """Read the input of a model.

    A tensor (or numpy array, or DataFrame) is one positional argument; a tuple or list is several; a mapping, such as
    the encoding of a tokenizer, is keyword arguments. The tensors are not copied and not changed.

    Args:
        x: the input.
        dtype: dtype of the floating-point numbers of arrays and tables; None is float32 for float64 and theirs else.

    Raises:
        InputError: when it has no tensor, an empty one or NaN, or is text, or a column of a table has no numbers.

    Example:
        >>> as_inputs({"a": torch.ones(2, 3)}).batch
        2
    """
    if isinstance(x, Inputs):
        return x
    if isinstance(x, torch.Tensor):
        return _with_numbers(Inputs((x,), {}), {"0": x})
    if isinstance(x, str) or (isinstance(x, (list, tuple)) and x and all(isinstance(part, str) for part in x)):
        raise InputError("text needs a tokenizer: Lens(model, tokenizer=...), or pass the encoding as a dict.")
    parts: dict[str, Any] = {"0": x}
    if isinstance(x, Mapping):
        if not all(isinstance(key, str) for key in x):
            raise InputError(f"a dict input is passed as keyword arguments; its keys must be str, got {list(x)}.")
        parts = dict(x)
    elif isinstance(x, (tuple, list)):
        parts = {str(place): part for place, part in enumerate(x)}
    elif not (isinstance(x, np.ndarray) or is_frame(x) or is_series(x)):
        other = " Try .to_pandas()." if hasattr(x, "to_pandas") else ""
        if isinstance(x, nn.Module):
            other = " The model comes first, saliency(model, x); a Lens has it already, lens.saliency(x)."
        elif isinstance(x, (torch.utils.data.Dataset, torch.utils.data.DataLoader)):
            other = " Of a data set: lens.over(data).saliency(); or one batch of a loader: x, y = next(iter(loader))."
        raise InputError(f"cannot pass {describe(x)} to a model. Give a tensor, a tuple of tensors, or a dict.{other}")
    features, indices = dict[str, Names](), dict[str, Index]()
    for name, part in parts.items():
        if is_series(part) and part is not x:
            raise InputError(
                f"input {name!r} is a Series next to other inputs, which may be one sample or one number for each: "
                "give series.to_frame().T or series.to_numpy()."
            )
        if is_frame(part) or is_series(part):
            parts[name], columns, rows = read_table(part)
            features |= {name: columns} if columns else {}
            indices |= {name: rows} if rows else {}
        if isinstance(parts[name], np.ndarray):
            parts[name] = _from_numpy(parts[name], dtype)
    if len(set(indices.values())) > 1:
        raise InputError(f"the rows of {' and '.join(indices)} have different names: give tables of the same samples.")
    index = next(iter(indices.values()), None)
    args, kwargs = ((), parts) if isinstance(x, Mapping) else (tuple(parts.values()), {})
    given = Inputs(args, kwargs, features=features, index=index)
    tensors = given.tensors()
    if not tensors:
        how = "Give numbers as one: torch.tensor(x)."
        if isinstance(x, Mapping):
            how = "Give numbers as tensors: tokenizer(text, return_tensors='pt'), or a table as pandas.DataFrame(x)."
        elif not parts:
            how = "Give one sample or more."
        raise InputError(f"the input ({describe(x)}) holds no tensor. {how}")
    return _with_numbers(given, tensors)


def _with_numbers(given: Inputs, tensors: Mapping[str, torch.Tensor]) -> Inputs:
    """The input, unless one of its tensors has no numbers, or one that is none."""
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            raise InputError(f"input {name!r} is empty: {describe(tensor)}. Give one sample or more, such as x[:1].")
        if tensor.is_meta:
            raise InputError(
                f"input {name!r} ({describe(tensor)}) is on the meta device, which keeps its shape alone. Give "
                f"numbers, such as torch.rand({tuple(tensor.shape)})."
            )
        if tensor.is_floating_point() and _has_nan(tensor):
            raise InputError(
                f"input {name!r} ({describe(tensor)}) holds NaN; every number computed from it would be NaN. "
                "Fill the gaps, for example with x.nan_to_num()."
            )
    return given


def _has_nan(tensor: torch.Tensor) -> bool:
    if type(tensor) is torch.Tensor and tensor.layout is torch.strided and not tensor.is_nested and tensor.itemsize > 1:
        total = tensor.sum().item()  # NaN if one number is, and also of infinities of both signs
        if total == total:
            return False
    return bool(torch.isnan(tensor).any())


def _from_numpy(array: np.ndarray[Any, Any], dtype: torch.dtype | None) -> torch.Tensor:
    if array.dtype.kind not in "fiub":
        raise InputError(
            f"cannot make a tensor of a numpy array of dtype {array.dtype}. It has the shape {array.shape}: give "
            "numbers, such as x.astype('float32'), and codes of columns that hold words, such as pandas.get_dummies."
        )
    tensor = torch.from_numpy(array.copy())
    if dtype is None and tensor.dtype == torch.float64:
        dtype = torch.float32
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
