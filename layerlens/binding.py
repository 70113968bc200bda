"""Analyzers as methods of a lens, each with its own signature and docstring."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from torch.utils.data import DataLoader, Dataset

from .axes.batch_axis import check_batch_axis, refuse_lists
from .errors import InputError, OptionError, TargetError, suggestion
from .inputs.inputs import Inputs
from .results import MethodTable
from .signatures import current_names, old_names, refuse_unknown, without_others
from .wrapped_model import WrappedModel

P = ParamSpec("P")
R = TypeVar("R")

Prepare = Callable[[WrappedModel, dict[str, Any], "Inputs | None"], None]
"""`(lens, arguments, inputs)`: reads more of the arguments, in place."""
Finish = Callable[[WrappedModel, Any, Mapping[str, Any]], Any]
"""`(lens, result, arguments) -> result`: adds to a result what the lens knows."""


_REFERENCES = {"baseline", "baselines", "fill", "reference"}
"""Options that may be tables and pictures, as the input may."""


class bind(Generic[P, R]):
    """A function of a model as a method of a lens, with the function's own signature, docstring and types.

    The lens passes its model and its `forward`, reads inputs (text by the tokenizer) and targets (names by
    `class_names`), and names the tokens of the result.

    Args:
        function: takes the model first.
        inputs: parameters that are read as model inputs; data sets are left to the function.
        predicted: whether a target of None means the predicted class; otherwise None stays None.
        words: targets that the function reads by itself, such as `"label"`; None if it reads all of them.
        hidden: parameters that the lens fills in.
        prepare: reads more of the arguments.
        finish: adds to the result; None names its tokens.
    """

    def __init__(
        self,
        function: Callable[Concatenate[Any, P], R],
        *,
        inputs: tuple[str, ...] = ("x",),
        predicted: bool = True,
        words: tuple[str, ...] | None = (),
        hidden: tuple[str, ...] = (),
        prepare: Prepare | None = None,
        finish: Finish | None = None,
    ) -> None:
        self.function = function
        self.inputs, self.predicted, self.words = inputs, predicted, words
        self.prepare, self.finish = prepare, finish
        self.__name__ = function.__name__
        full = inspect.signature(function)
        self._full = full
        self._rest = next((name for name, one in full.parameters.items() if one.kind is one.VAR_KEYWORD), None)
        own = {"forward", "read", "aim", "tokenizer", *hidden}
        kept = [one for name, one in list(full.parameters.items())[1:] if name not in own]
        self.signature = full.replace(parameters=kept)
        self.__doc__ = without_others(function.__doc__ or "", self.signature.parameters)
        first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self.__signature__ = full.replace(parameters=[first, *kept])

    def __call__(self, lens: WrappedModel, *args: Any, **kwargs: Any) -> Any:
        """Call the function for a lens.

        Raises:
            UnknownOption: when the function has no such option.
            TypeError: when there are too many arguments by position, or one is given twice.
            InputError: when the input lacks its batch axis, or holds samples in a list.
            TargetError: when the target does not fit.
        """
        kwargs = current_names(self.__name__, kwargs, old_names(self.function))
        if self._rest is None:
            others = [name for name in kwargs if name not in self._full.parameters]
            refuse_unknown(self.__name__, others, self.signature.parameters)
        try:
            given = self._full.bind_partial(lens.model, *args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(self._misplaced(args, error)) from None
        options = given.pop(self._rest, {}) if self._rest is not None else {}
        known = self._read(lens, given)
        if options.get("target") is not None:
            options = {**options, "target": lens.target(options["target"], known)}
        for one in (given, options):
            one |= {name: lens.reference(one[name], known) for name in _REFERENCES & one.keys()}
        function: Callable[..., Any] = self.function
        try:
            result = function(**given, **options)
        except (TargetError, InputError):  # an input without its batch axis may run
            if known is not None:
                refuse_lists(lens.model, known, lens.forward)
                check_batch_axis(lens.model, known, lens.forward)
            raise
        return lens.with_tokens(result, known) if self.finish is None else self.finish(lens, result, given)

    def _misplaced(self, args: tuple[Any, ...], error: TypeError) -> str:
        """Say which arguments are given by position and which by keyword."""
        parameters = self.signature.parameters.values()
        ordered = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
        if len(args) <= len(ordered):
            return f"{self.__name__}() got {error}."
        named = ", ".join(f"{one.name}=" for one in parameters if one.kind is one.KEYWORD_ONLY)
        return (
            f"{self.__name__}() takes {len(ordered)} by position ({', '.join(ordered)}), got {len(args)}. "
            f"Give the others by name: {named}."
        )

    def _read(self, lens: WrappedModel, given: dict[str, Any]) -> Inputs | None:
        """Read the arguments as the lens does, in place; return the inputs that were read last."""
        parameters = self._full.parameters
        known: Inputs | None = None
        for name in self.inputs:
            value = given.get(name)
            if value is not None and "read" not in parameters and not isinstance(value, (Dataset, DataLoader)):
                given[name] = known = lens.inputs(value)
                if any(one.ndim == 1 for one in known.floating().values()):
                    check_batch_axis(lens.model, known, lens.forward)
        spec = given.get("target")
        word = self.words is None or (isinstance(spec, str) and spec in self.words)
        if "target" in parameters and not word and (spec is not None or self.predicted):
            given["target"] = lens.target(spec, known)
        filled = {"forward": lens.forward, "read": lens.inputs, "aim": lens.target, "tokenizer": lens.tokenizer}
        for name, value in filled.items():
            if name in parameters:
                given.setdefault(name, value)
        if self.prepare is not None:
            self.prepare(lens, given, known)
        return known

    @overload
    def __get__(self, lens: None, owner: type[Any]) -> bind[P, R]: ...
    @overload
    def __get__(self, lens: WrappedModel, owner: type[Any]) -> Callable[P, R]: ...
    def __get__(self, lens: WrappedModel | None, owner: type[Any]) -> Any:
        return self if lens is None else Bound(self, lens)


class Bound:
    """A function bound to a lens, see `bind`."""

    def __init__(self, binding: bind[..., Any], lens: WrappedModel) -> None:
        self._binding: Any = binding
        self._lens = lens
        self.__doc__, self.__name__ = binding.__doc__, binding.__name__
        self.__qualname__ = f"Lens.{self.__name__}"
        self.__signature__ = binding.signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function with the model of the lens."""
        return self._binding(self._lens, *args, **kwargs)

    @property
    def __self__(self) -> WrappedModel:
        return self._lens

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Bound:
        """Return itself; with this method `help` shows the whole signature, as for any method."""
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bound) and (self._binding, self._lens) == (other._binding, other._lens)

    def __hash__(self) -> int:
        return hash((self._binding, self._lens))

    def __repr__(self) -> str:
        return f"<{self.__qualname__}{self.__signature__} of {self._lens!r}>"


class bind_family(bind[P, R]):
    """A function that calls methods by name as a method of a lens, see `Family`.

    Args:
        function: takes the model first, and the name of a method as `method`.
        functions: returns the functions of the methods by name, those included that were registered later.
        methods: returns the table of all methods.
        fitting: `(model, x, *, target, forward)`: returns the table of those that fit an input; None if there is none.
    """

    def __init__(
        self,
        function: Callable[Concatenate[Any, P], R],
        functions: Callable[[], Mapping[str, Callable[..., Any]]],
        methods: Callable[[], MethodTable],
        *,
        fitting: Callable[..., MethodTable] | None = None,
        predicted: bool = True,
    ) -> None:
        super().__init__(function, predicted=predicted)
        self.functions, self.methods, self.fitting = functions, methods, fitting

    def __get__(self, lens: WrappedModel | None, owner: type[Any]) -> Any:
        """Return the methods for a lens."""
        return self if lens is None else Family(self, lens)


class Family(Bound):
    """A function that calls methods by name, bound to a lens; each method is an attribute with its own signature."""

    _binding: Any

    def __getattr__(self, name: str) -> Bound:
        functions = self._binding.functions()
        if name not in functions:
            raise AttributeError(f"{self.__qualname__} has no method {name!r}.{suggestion(name, functions)}")
        own = getattr(type(self._lens), name, None)
        if isinstance(own, bind) and own.function is functions[name]:
            return Bound(own, self._lens)
        return Bound(bind(functions[name]), self._lens)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._binding.functions(), "methods"})

    def methods(self, for_input: Any = None, *, target: Any = None) -> MethodTable:
        """List every method with its cost, its needs and its source; or those that fit an input, with their time.

        Args:
            for_input: input of the model. It is run about ten times; the notes of the table say which method `"auto"`
                takes and why, and what was left out.
            target: what to score; None for the predicted class.

        Raises:
            OptionError: when the methods of this family do not depend on the input.
        """
        if for_input is None:
            table: MethodTable = self._binding.methods()
            return table
        if self._binding.fitting is None:
            raise OptionError(f"{self.__qualname__}.methods() takes no input: all of them fit any.")
        x, lens = self._lens.inputs(for_input), self._lens
        table = self._binding.fitting(lens.model, x, target=lens.target(target, x), forward=lens.forward)
        return table
