"""Layers by name: the dotted paths of a model's modules, and how to select them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, ItemsView, Iterable, Mapping, ValuesView
from typing import Any, TypeAlias, TypeGuard

from torch import nn

from layerlens.errors import LayerNotFound, SelectionError, suggestion
from layerlens.signatures import public

from .selection import Found, InputOf, Matches, join, split_tensor

LayerPath: TypeAlias = str
"""The dotted name of a module inside its model, as in `model.named_modules()`; `""` is the model itself."""

Predicate: TypeAlias = Callable[[LayerPath, nn.Module], bool]

Selection: TypeAlias = (
    "str | re.Pattern[str] | type[nn.Module] | nn.Module | Predicate | Iterable[Selection] | InputOf | None"
)
"""A selection of layers: a path, a glob, a compiled regular expression, a module type, a module, a predicate
`(path, module) -> bool`, None for every layer, a result of `select`, or a list of those. A path or glob may name a
tensor of what the layer returned: `"rnn/h_n"`, `"block/0"`."""

_GLOB = re.compile(r"[*?\[]")
_CALL = re.compile(r"(.*)#(\d+(?:,\d+)*)")


class Layers(Mapping[LayerPath, nn.Module]):
    """The modules of a model by path, each once, in definition order; a shared module's other names are `aliases`.

    Args:
        model: any `torch.nn.Module`.

    Example:
        >>> Layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
        Layers(2 in Sequential: 0, 1)
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._modules: dict[LayerPath, nn.Module] = {}
        self.aliases: dict[LayerPath, LayerPath] = {}
        first: dict[int, LayerPath] = {}
        waiting = [("", model)]
        while waiting:
            path, module = waiting.pop()
            if id(module) in first:
                self.aliases[path] = first[id(module)]
            else:
                first[id(module)] = path
                self._modules[path] = module
            start = f"{path}." if path else ""
            waiting += [(start + name, child) for name, child in reversed(module._modules.items()) if child is not None]

    def canonical(self, path: LayerPath) -> LayerPath:
        """Return the first name of the module named `path`.

        Raises:
            LayerNotFound: when there is none; with the nearest names.
        """
        path = self.aliases.get(path, path)
        if path not in self._modules:
            raise LayerNotFound(self._missing(f"no layer {path!r}", path))
        return path

    def __getitem__(self, path: LayerPath) -> nn.Module:
        return self._modules[self.canonical(path)]

    def __contains__(self, path: object) -> bool:
        return path in self._modules or path in self.aliases

    def __iter__(self) -> Any:
        return iter(self._modules)

    def values(self) -> ValuesView[nn.Module]:
        """Return the modules."""
        return self._modules.values()

    def items(self) -> ItemsView[LayerPath, nn.Module]:
        """Return each path with its module."""
        return self._modules.items()

    def __len__(self) -> int:
        return len(self._modules)

    def __repr__(self) -> str:
        names = [path for path in self._modules if path]
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        return f"Layers({len(names)} in {type(self.model).__name__}: {shown})"

    def select(self, selection: Selection = None, *, calls: bool = False, tensors: bool = False) -> Matches:
        """Return the paths that `selection` matches, each once, in definition order.

        In a glob `*` and `?` stay within one part of the dotted path and `**` crosses dots: `blocks.*` are the blocks,
        `blocks.**` everything below them. A regular expression matches anywhere in the path (`re.search`). Neither
        matches the model itself, which is `""`. `"rnn#2"` is the third call of a layer, `"rnn#0,2"` are two.
        `"rnn/h_n"` is a tensor of what a layer returned, `"rnn#2/h_n"` that of one call: torch's own names for its
        recurrent layers and attention, keys of dicts, fields, and numbers of tuples, nested as in `"block/1/0"`.

        Args:
            selection: see `Selection`; None selects every layer but the model itself.
            calls: whether calls of a layer may be named.
            tensors: whether tensors of a layer's output may be named.

        Returns:
            `Matches`: a list of paths that prints what matched, and can be combined by `|`, `&` and `-`.

        Raises:
            LayerNotFound: when it, or one entry of a list, matches nothing; names the nearest paths.
            SelectionError: when its type cannot select layers, or it names calls or tensors where layers are needed.

        Example:
            >>> Layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU())).select(nn.Linear)
            1 of 2 layers
              0  Linear  type Linear
        """
        matches = Matches({path: type(module).__name__ for path, module in self.items()}, self.found(selection))
        for allowed, what, chosen in ((calls, "a call", matches.calls), (tensors, "a tensor", matches.tensors)):
            if not allowed and any(part is not None for part in chosen.values()):
                (name, *_) = [
                    name for name, part in zip(matches.names(), chosen.values(), strict=True) if part is not None
                ]
                raise SelectionError(
                    f"{name!r} names {what}, but a layer is needed here; {what[2:]}s can be selected in probes, "
                    "captures and edits."
                )
        return matches

    def found(self, selection: Selection) -> dict[LayerPath, Found]:
        """Return path -> (calls, tensors, why) of what a selection matches, in definition order, see `select`.

        Raises:
            LayerNotFound: when nothing matches.
        """
        found = self._find(selection)
        return {path: found[path] for path in self._modules if path in found}

    def _find(self, selection: Selection) -> dict[LayerPath, Found]:
        if selection is None:
            return dict.fromkeys([path for path in self._modules if path] or [""], (None, None, "every layer"))
        if isinstance(selection, InputOf):
            raise SelectionError(
                f"{selection!r}: the input of a layer can be given as where=, in neuron() and in edits, and what a "
                "layer returns is needed here. Probe(model, layer, inputs=True) records what it takes."
            )
        if isinstance(selection, Matches):
            return {self.canonical(path): found for path, found in selection.found().items()}
        if is_listed(selection):
            if not selection:
                raise LayerNotFound("an empty list selects no layer; pass None for every layer.")
            merged: dict[LayerPath, Found] = {}
            for entry in selection:
                for path, found in self._find(entry).items():
                    merged[path] = join(path, merged[path], found) if path in merged else found
            return merged
        name = selection if isinstance(selection, str) and selection not in self else ""
        layer, tensor = split_tensor(name, self) if "/" in name else (name, "")
        if tensor:
            return {path: (calls, frozenset((tensor,)), why) for path, (calls, _, why) in self._find(layer).items()}
        call = _CALL.fullmatch(name)
        if call is not None:
            chosen = frozenset(int(number) for number in call[2].split(","))
            return {path: (chosen, tensors, why) for path, (_, tensors, why) in self._find(call[1]).items()}
        if isinstance(selection, str) and (selection in self or not _GLOB.search(selection)):
            path = self.canonical(selection)
            return {path: (None, None, "its path" if path == selection else f"another name, {selection}")}
        if isinstance(selection, (str, re.Pattern)):
            matched = _matching(selection, tuple(self._modules), tuple(self.aliases.items()))
        else:
            matches = self._matcher(selection)
            matched = {path for path, module in self._modules.items() if matches(path, module)}
            matched |= {first for alias, first in self.aliases.items() if matches(alias, self._modules[first])}
        if not matched:
            wanted = selection.pattern if isinstance(selection, re.Pattern) else _show(selection)
            raise LayerNotFound(self._missing(f"{_show(selection)} matches no layer", str(wanted)))
        reason = _reason(selection)
        return dict.fromkeys(matched, (None, None, reason))

    def _matcher(self, selection: Selection) -> Callable[[LayerPath, nn.Module], bool]:
        if isinstance(selection, nn.Module):
            return lambda path, module: module is selection
        if isinstance(selection, type) or _is_types(selection):
            return lambda path, module: isinstance(module, selection)
        if callable(selection):
            return lambda path, module: bool(selection(path, module))
        raise SelectionError(
            f"cannot select layers by {type(selection).__name__} {selection!r}. Use a path, a glob, re.compile(...), "
            "a module type, a module, a predicate (path, module) -> bool, or a list of those."
        )

    def _missing(self, what: str, wanted: str) -> str:
        kind = type(self.model).__name__
        names = [path for path in self._modules if path]
        return f"{what} in {kind} ({len(names)} layers).{suggestion(wanted, names)} List all: lens.layers()"


@public
def input_of(layer: Selection) -> InputOf:
    """Name what a layer takes, instead of what it returns, as `where=`, in `neuron` or in `edits=`.

    Args:
        layer: ... A call of it (`"rnn#1"`), or an argument as edits name it: `"attn/0/1"` for the second positional
            one, `"attn/1/mask"` for a keyword. Without a name, every tensor of floating point that it takes.

    Example:
        >>> import layerlens, torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> found = layerlens.saliency(net, torch.ones(1, 2), method="input_x_gradient", where=input_of("2"))
        >>> found.settings["where"], found.tensor.shape
        ('input of 2', torch.Size([1, 3]))
    """
    return InputOf(layer)


@public(renamed={"selection": "layers"})
def select(model: nn.Module, layers: Selection = None) -> Matches:
    """Return what a selection of layers, of their calls or of tensors that they return, matches and why.

    Raises:
        LayerNotFound: when it matches no layer; with the nearest names.

    Example:
        >>> list(select(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.ReLU))
        ['1']
    """
    return Layers(model).select(layers, calls=True, tensors=True)


def matching_names(patterns: Iterable[str], names: Iterable[str], kind: str, owner: str) -> list[str]:
    """Return the names that match any of the globs, in their order; `*` crosses dots.

    Raises:
        LayerNotFound: when a pattern matches none; with the nearest names.
    """
    known = list(names)
    chosen: set[str] = set()
    for pattern in patterns:
        # `*.weight` is meant to match parameters of nested modules, so `*` crosses dots
        glob = re.compile(_glob_to_regex(re.sub(r"\*+", "**", pattern)))
        found = [name for name in known if name == pattern or glob.fullmatch(name)]
        if not found:
            raise LayerNotFound(
                f"{pattern!r} matches no {kind} of {owner} ({len(known)} there).{suggestion(pattern, known)}"
            )
        chosen.update(found)
    return [name for name in known if name in chosen]


@functools.lru_cache(maxsize=64)
def _matching(
    pattern: str | re.Pattern[str], paths: tuple[LayerPath, ...], aliases: tuple[tuple[LayerPath, LayerPath], ...]
) -> set[LayerPath]:
    """The paths that a glob or a regular expression matches, also by an alias; the model itself has no name."""
    if isinstance(pattern, str):
        try:
            matches = re.compile(_glob_to_regex(pattern)).fullmatch
        except re.error as error:
            raise SelectionError(f"cannot read the glob {pattern!r}: {error}. Escape a bracket as [[].") from error
    else:
        matches = pattern.search
    return {path for path in paths if path and matches(path)} | {path for alias, path in aliases if matches(alias)}


def is_listed(selection: object) -> TypeGuard[Iterable[Any]]:
    """Return whether a selection is a list of selections."""
    return isinstance(selection, (list, tuple, set, frozenset)) and not _is_types(selection)


def _is_types(selection: object) -> TypeGuard[tuple[type[nn.Module], ...]]:
    return isinstance(selection, tuple) and bool(selection) and all(isinstance(entry, type) for entry in selection)


def _reason(selection: Selection) -> str:
    if isinstance(selection, str):
        return f"glob {selection!r}"
    if isinstance(selection, type) or _is_types(selection):
        kinds = selection if isinstance(selection, tuple) else (selection,)
        return f"type {', '.join(kind.__name__ for kind in kinds)}"
    return _show(selection) if isinstance(selection, (re.Pattern, nn.Module)) else f"predicate {_show(selection)}"


def _show(selection: Selection) -> str:
    if isinstance(selection, str):
        return selection
    if isinstance(selection, re.Pattern):
        return f"the regular expression {selection.pattern!r}"
    if isinstance(selection, nn.Module):
        return f"this {type(selection).__name__} object"
    return f"{getattr(selection, '__name__', repr(selection))}"


def _glob_to_regex(glob: str) -> str:
    """Translate a glob over dotted paths: `*` and `?` within one part, `**` across parts, `[...]` one character."""
    parts: list[str] = []
    position = 0
    while position < len(glob):
        if glob.startswith("**", position):
            parts.append(".*")
            position += 2
            continue
        character = glob[position]
        closing = glob.find("]", position + 1)
        if character == "[" and closing > position + 1:
            body = glob[position + 1 : closing]
            parts.append(f"[{'^' + body[1:] if body.startswith('!') else body}]")
            position = closing
        else:
            parts.append({"*": "[^.]*", "?": "[^.]"}.get(character, re.escape(character)))
        position += 1
    return "".join(parts)


def parameter_count(module: nn.Module, seen: Iterable[int] = ()) -> int:
    """Return the number of parameters of `module`, each counted once, without those whose id is in `seen`."""
    known = set(seen)
    return sum(parameter.numel() for parameter in module.parameters() if id(parameter) not in known)
