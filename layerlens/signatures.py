"""Signatures and docstrings of public functions: shared parameters documented once, misspelled options named."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast, overload

from .errors import AGAIN, OptionError, UnknownOption, suggestion, warn
from .progress import showing
from .turns import guarded, turn

Function = TypeVar("Function", bound=Callable[..., Any])
Class = TypeVar("Class", bound=type[Any])

SHARED = {
    "model": "any `torch.nn.Module`; it runs in eval mode and is returned as it was.",
    "x": "input of the model, `(batch, ...)`: a tensor, a tuple of arguments, or a dict of keyword arguments.",
    "layer": "a path, or any selection that matches one layer.",
    "rules": 'a rulebook or the name of one, see `relevance`; `"auto"` takes the one that fits the model.',
    "layers": "which layers, see `Selection`; None for every layer.",
    "target": "what to score, see `as_target`; None is the predicted class.",
    "where": 'None for the input; or a layer, or a call of one (`"rnn#1"`), whose output is attributed to; or '
    "`input_of(layer)` for what it takes; or a list of those, whose values are a dict by name.",
    "hold": "an input that is held fixed, by name or position, or a list of those: never changed or attributed to.",
    "call": "which call of a layer that runs several times.",
    "forward": "`forward(model, *args, **kwargs)` to call instead of the model.",
    "data": "a data set: a tensor, Dataset, DataLoader, or iterable of samples or of pairs (x, label); or a `Data`.",
    "labels": "one per sample; None takes those in the data.",
    "pool": 'how a layer becomes a row: `"mean"` takes each unit\'s mean over places, `"last"` its last place, '
    '`"flatten"` all numbers, or a function from `(batch, units, *places)` to `(batch, features)`.',
    "max_samples": "number of samples kept, drawn at random.",
    "permutations": "number of random orders that the null is made of.",
    "penalty": "inverse strength C of the penalty of logistic regression, for features of unit variance.",
    "attribution": "an `Attribution` of x, an array like x or without its channels, or a coarser map of an image. "
    "Signed: evidence against the target comes last; equal values come in random order.",
    "masks": "bool `(batch, *places)`, True on the object.",
    "fill": "what removed places become, see `baseline` in `integrated_gradients`.",
    "measure": '`"probability"` of the target\'s class, `"score"`, or `"auto"`: the probability where the target is '
    "one of several classes.",
    "read": "turns a batch, or one text, into model inputs.",
    "batch_size": "samples per pass.",
    "draws": "number of random draws.",
    "null": "whether to measure the model with the entries of each parameter in random order too, as a reference.",
    "batched": "whether the items of an iterable are batches; None: yes for a DataLoader, no for others.",
    "seed": "seed of every random draw, also of models that draw numbers.",
    "progress": "whether to show progress bars; None shows them in a terminal or notebook when the work takes long.",
    "ax": "axes to draw into; None makes a figure.",
    "fig": "figure or subfigure to draw into, in its size; None makes one.",
    "width": '`"column"` (3.25 in), `"page"` (6.75 in), or inches.',
    "title": 'None for method and target, `""` for none.',
    "sample": "sample by number or name, or a list of them; None draws the first that fit a page, at most six.",
    "name": "which input, if there are several.",
    "channel": 'how channels become one number: `"sum"`, `"abs"` (sum of absolute values), or the index of one.',
    "cmap": "matplotlib colormap; None is RdBu_r for signed values and magma for magnitudes.",
    "vmax": "end of the scale or axis; None fits the data.",
    "clip": "percentile of |value| where colors saturate, stated at the colorbar.",
    "interval": "share of the intervals that are drawn where values have an error; None draws none.",
    "colorbar": "whether to draw the colorbar.",
    "scale": '`"linear"` or `"log"`.',
}
"""Parameter -> its description, where several functions share it."""

SECTIONS = ("Args", "Returns", "Yields", "Raises", "Warns", "Example")
"""Sections of a docstring in their order."""

WIDTH = 120
"""Longest line of an entry that is put together."""

_ENTRY = re.compile(r"^ {4}\**(\w+):")
_MORE = "... "


@overload
def public(function: Function) -> Function: ...


@overload
def public(*, renamed: Mapping[str, str]) -> Callable[[Function], Function]: ...


def public(
    function: Function | None = None, *, renamed: Mapping[str, str] | None = None
) -> Function | Callable[[Function], Function]:
    """Complete the docstring of a public function, and name the nearest option when one is misspelled.

    Parameters that the docstring leaves out are described by `SHARED`, in the order of the signature; a description
    that begins with `...` continues the shared one. No interrupt cuts a call short (see `turns`), and functions of a
    `model` run in one thread at a time.

    Args:
        function: the function; None to decorate with options.
        renamed: old name of an option -> its name; the old one is accepted with a DeprecationWarning.

    Raises:
        UnknownOption: when the function is called with an option it does not have.
    """

    def complete(function: Function) -> Function:
        parameters = inspect.signature(function).parameters
        function.__doc__ = documented(function.__doc__ or "", parameters)
        names = frozenset(parameters)
        extensible = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
        if inspect.isgeneratorfunction(function):
            return function
        around = turn if next(iter(parameters), None) == "model" else guarded

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            name = type(args[0]).__name__ if args and function.__name__ == "__init__" else function.__name__
            if renamed and not renamed.keys().isdisjoint(kwargs):
                kwargs = current_names(name, kwargs, renamed)
            if not extensible and not kwargs.keys() <= names:
                refuse_unknown(name, [option for option in kwargs if option not in names], names)
            asked = kwargs.get("progress")
            with around, contextlib.nullcontext() if asked is None else showing(asked):
                try:
                    return function(*args, **kwargs)
                except RuntimeError as error:
                    once = any(isinstance(value, Iterator) for value in (*args, *kwargs.values()))
                    if once or not getattr(error, AGAIN, False):
                        raise
                return function(*args, **kwargs)  # the model differentiates itself, which is known now

        if renamed:
            call.__renamed__ = dict(renamed)  # type: ignore[attr-defined]
        return cast(Function, call)

    return complete if function is None else complete(function)


def public_class(of: Class) -> Class:
    """Let a class name the nearest option when it is made with a misspelled one.

    Args:
        of: class whose `__init__` is made by `dataclasses`.
    """
    of.__init__ = public(of.__init__)
    return of


def old_names(function: Callable[..., Any]) -> Mapping[str, str]:
    """Return the old name -> the name of every renamed option of a public function."""
    names: Mapping[str, str] = getattr(function, "__renamed__", {})
    return names


def current_names(name: str, options: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Return options by their current names, with a DeprecationWarning for each old one.

    Raises:
        OptionError: when an option is given by both names.
    """
    current: dict[str, Any] = {}
    for option, value in options.items():
        new = renamed.get(option, option)
        if new in current or (new != option and new in options):
            raise OptionError(f"{name}() got {option!r}, the old name of {new!r}, as well; leave {option!r} out.")
        if new != option:
            warn(f"{name}({option}=) is now {new}=.", DeprecationWarning)
        current[new] = value
    return current


def refuse_unknown(name: str, given: Iterable[str], known: Iterable[str], also: Iterable[str] = ()) -> None:
    """Refuse options that a function does not have; the nearest one may also be one of `also`.

    Raises:
        UnknownOption: with the nearest option and all that there are.
    """
    options = [one for one in known if one not in ("self", "model")]
    for one in given:
        if one not in options:
            near = suggestion(one, [*options, *also])
            raise UnknownOption(f"{name}() has no option {one!r}.{near} Known: {', '.join(sorted(options))}.")


def documented(text: str, parameters: Iterable[str], shared: Mapping[str, str] = SHARED) -> str:
    r"""Return a docstring whose `Args:` describes every parameter that `shared` knows.

    Args:
        text: docstring, with or without `Args:`.
        parameters: names in the order of the signature.
        shared: parameter -> its description.

    Example:
        >>> print(documented("Sum.\n\n    Returns:\n        It.\n    ", ["x"]).splitlines()[3].strip()[:21])
        x: input of the model
    """
    names = list(parameters)
    return with_section(text, "Args", {name: shared[name] for name in names if name in shared}, names)


def with_section(text: str, section: str, shared: Mapping[str, str], order: Iterable[str] = ()) -> str:
    """Return a docstring whose section has an entry for each of `shared`, without the indentation of the source.

    (Python 3.13 takes that away when it compiles, earlier versions do not.) Entries of the docstring stay; a
    description that begins with `...` continues the shared one.

    Args:
        text: docstring, with or without the section.
        section: `"Args"`, `"Raises"` or another one of `SECTIONS`.
        shared: entry -> its description; the entry `""` is the text of a section without names.
        order: names of entries in their order; others follow.
    """
    text = inspect.cleandoc(text)
    lines = text.split("\n")
    head = f"{section}:"
    start = lines.index(head) if head in lines else None
    if start is None:
        if not shared:
            return text
        later = [f"{name}:" for name in SECTIONS[SECTIONS.index(section) + 1 :]]
        start = next((place for place, line in enumerate(lines) if line in later), None)
        if start is None:
            start = len(lines) + 1
            lines += ["", head]
        else:
            lines[start:start] = [head, ""]
    stop = _end(lines, start)
    described = {"": lines[start + 1 : stop]} if "" in shared else _entries(lines[start + 1 : stop])
    made = []
    for name in dict.fromkeys([*order, *shared]):
        own = described.pop(name, None)
        label = f"    {name}: " if name else "    "
        if not own and name in shared:
            made += _wrapped(label, shared[name])
        elif own:
            first = own[0].removeprefix(label)
            if name in shared and first.startswith(_MORE):
                own = _wrapped(label, " ".join([shared[name], first.removeprefix(_MORE), *map(str.strip, own[1:])]))
            made += own
    for rest in described.values():
        made += rest
    lines[start + 1 : stop] = made
    return "\n".join(lines)


def _wrapped(label: str, text: str) -> list[str]:
    """The lines of an entry."""
    if len(label) + len(text) <= WIDTH:
        return [label + text]
    indent = label[: len(label) - len(label.lstrip())] + "    " * bool(label.strip())
    return textwrap.wrap(text, WIDTH, initial_indent=label, subsequent_indent=indent, break_on_hyphens=False)


def without_others(text: str, parameters: Container[str]) -> str:
    """Return a docstring whose `Args:` describes none but some parameters.

    Args:
        text: docstring.
        parameters: names to keep.
    """
    lines = inspect.cleandoc(text).split("\n")
    if "Args:" not in lines:
        return text
    start = lines.index("Args:")
    stop = _end(lines, start)
    entries = _entries(lines[start + 1 : stop])
    lines[start + 1 : stop] = [line for name, entry in entries.items() if name in parameters for line in entry]
    return "\n".join(lines)


def _end(lines: list[str], start: int) -> int:
    """The place of the empty line that ends the section whose head is at `start`."""
    return next((place for place in range(start + 1, len(lines)) if not lines[place].strip()), len(lines))


def _entries(lines: list[str]) -> dict[str, list[str]]:
    """The lines of each entry of a section."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in lines:
        entry = _ENTRY.match(line)
        if entry is not None:
            name = entry[1]
            found[name] = []
        found.setdefault(name, []).append(line)
    return found
