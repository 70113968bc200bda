"""Functional values: what torch functions return inside of layers, where no module has a name for it.

A torch function mode sees every call that Python makes: `x + y`, `F.softmax(scores)`, `torch.cat(parts)`. What one call
does inside itself (an LSTM, fused attention, a compiled region) it does not see.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .axes import axes_of
from .borrow import borrowed
from .call import Call
from .errors import LayerNotFound, choose, suggestion
from .hooks import recomputing, stored, versions
from .inputs import as_inputs
from .layers import Layers, Selection
from .nested import first_tensor, map_tensors
from .record import Record
from .spans import Running

_PLAIN = {
    "radd": "add", "iadd": "add", "rsub": "sub", "isub": "sub", "rmul": "mul", "imul": "mul", "truediv": "div",
    "rtruediv": "div", "itruediv": "div", "rmatmul": "matmul", "imatmul": "matmul", "rpow": "pow", "ipow": "pow",
}  # fmt: skip
_UNSEEN = {"get", "set", "repr", "len", "hash", "detach", "iter", "format", "size", "dim", "requires_grad"}
"""Functions that compute nothing."""

Names = str | Callable[..., Any] | Sequence[str | Callable[..., Any]] | None


def functions(
    model: nn.Module,
    x: Any,
    layers: Selection = None,
    names: Names = None,
    *,
    keep: Literal["shapes", "reference", "clone", "cpu"] = "shapes",
    reduce: Callable[[Any], Any] | None = None,
    forward: Callable[..., Any] | None = None,
) -> Record:
    """Run `model` once, in eval mode and without gradients, and record what torch functions return inside its layers.

    Each is named `<layer>/<function>`, by the innermost layer that runs; `""` is the model itself. A function that is
    called several times in a layer has several calls, in order: `record.calls("blocks.0/add")[1]`.

    Args:
        model: any module.
        x: its input, as in `capture`.
        layers: inside of which layers; None for all and the model itself.
        names: names of functions, globs (`"*softmax"`), or functions (`F.softmax`); None for all that return
            floating-point tensors. `x + y`, `x.add_(y)` and `torch.add(x, y)` are all `add`.
        keep: `"shapes"` (default) keeps tensors without memory, of the meta device, to look at what there is;
            the others as in `Probe`.
        reduce: applied to each value; only what it returns is kept.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Raises:
        LayerNotFound: when no layer, or no function inside of the layers, matches; names the nearest.

    Example:
        >>> class Residual(nn.Module):
        ...     def forward(self, x):
        ...         return x + torch.tanh(x)
        >>> record = functions(Residual(), torch.ones(1, 2))
        >>> list(record)
        ['/tanh', '/add']
    """
    choose("keep policy", keep, ("shapes", "reference", "clone", "cpu"))
    inside = None if layers is None else set(Layers(model).select(layers))
    with borrowed(model, grad=False), Running(model) as running:
        watch = _Watch(running, inside, _wanted(names), keep, reduce, dict(Layers(model).items()))
        with watch:
            as_inputs(x).run(model, forward)
    if not watch.record.count:
        where = "" if inside is None else " inside of the selected layers"
        raise LayerNotFound(
            f"no function {names!r} was called{where}.{suggestion(str(names), sorted(watch.seen))} Called: "
            f"{', '.join(sorted(watch.seen)[:20]) or 'none'}."
        )
    return watch.record


class _Watch(TorchFunctionMode):
    def __init__(
        self,
        running: Running,
        inside: set[str] | None,
        wanted: Callable[[str, Any], bool],
        keep: str,
        reduce: Callable[[Any], Any] | None,
        modules: dict[str, nn.Module],
    ) -> None:
        super().__init__()
        self.record, self.seen = Record([]), set[str]()
        self._running, self._inside, self._wanted, self._modules = running, inside, wanted, modules
        self._keep, self._reduce = keep, reduce
        self._counts: Counter[str] = Counter()

    def __torch_function__(
        self, function: Callable[..., Any], kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        main = first_tensor(result) if isinstance(result, (torch.Tensor, tuple, list)) else None
        if main is None or not main.is_floating_point() or recomputing() or not self._running.now:
            return result
        name, layer = function_name(function), self._running.layer
        if name in _UNSEEN or (self._inside is not None and layer not in self._inside):
            return result
        self.seen.add(name)
        if self._wanted(name, function):
            self._note(f"{layer}/{name}", layer, name, result, main)
        return result

    def _note(self, place: str, layer: str, name: str, result: Any, main: torch.Tensor) -> None:
        if self._reduce is not None:
            value = stored(self._reduce(result), "reference", False)
        elif self._keep == "shapes":
            value = map_tensors(result, lambda tensor: torch.empty_like(tensor, device="meta"))
        else:
            value = stored(result, self._keep, False)
        held = versions(value) if self._keep == "reference" else ()
        axes = axes_of(self._modules.get(layer, nn.Module()), main)
        index = self._counts[place]
        self._counts[place] += 1
        self.record.declare(place)
        self.record.add(Call(place, index, self.record.count, name, axes, value, stored=held))


def function_name(function: Callable[..., Any]) -> str:
    """The plain name of a torch function: `add` for `x + y`, `x += y`, `x.add_(y)` and `torch.add(x, y)`."""
    name = getattr(function, "__name__", type(function).__name__).strip("_")
    return _PLAIN.get(name, name)


def _wanted(names: Names) -> Callable[[str, Any], bool]:
    if names is None:
        return lambda name, function: True
    given = [names] if isinstance(names, str) or callable(names) else list(names)
    globs = [entry for entry in given if isinstance(entry, str)]
    plain = {function_name(entry) for entry in given if not isinstance(entry, str)}
    return lambda name, function: name in plain or any(fnmatch.fnmatchcase(name, glob) for glob in globs)
