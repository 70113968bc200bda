"""Functional values: the results of torch functions inside layers, which no module has a name for.

A torch function mode sees every call that Python makes: `x + y`, `F.softmax(scores)`, `torch.cat(parts)`. It does not
see what happens inside one call: the steps of `nn.LSTM`, the weights inside of `F.multi_head_attention_forward` and
`F.scaled_dot_product_attention`, a TorchScript function, a compiled region. Compiled models are run as written.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from layerlens.axes.call_site import CallSite
from layerlens.axes.follow import AxesOf, follow
from layerlens.axes.followed import names_of
from layerlens.axes.provenance.table import constant, sizes_of
from layerlens.errors import AxesUnknown, LayerNotFound, OptionError, choose, suggestion
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.borrowed import as_written, borrowed, is_compiled
from layerlens.model.call_tracking import Running
from layerlens.model.layers import LayerPath, Layers, Selection
from layerlens.model.tensors import tensors_of
from layerlens.model.trees import map_tensors, named_tensors
from layerlens.signatures import public
from layerlens.turns import whole

from .call import REDUCED, Call
from .probe import recomputing, stored, versions
from .record import Record

_NAMES = {
    "radd": "add", "iadd": "add", "rsub": "sub", "isub": "sub", "subtract": "sub", "rmul": "mul", "imul": "mul",
    "multiply": "mul", "truediv": "div", "rtruediv": "div", "itruediv": "div", "rdiv": "div", "idiv": "div",
    "divide": "div", "true_divide": "div", "floordiv": "floor_divide", "rfloordiv": "floor_divide",
    "ifloordiv": "floor_divide", "mod": "remainder", "rmod": "remainder", "imod": "remainder",
    "rmatmul": "matmul", "imatmul": "matmul", "rpow": "pow", "ipow": "pow", "concat": "cat", "concatenate": "cat",
}  # fmt: skip
UNKNOWN = "functions are followed in records of lens.functions(x)"
_UNSEEN = {"get", "set", "repr", "len", "hash", "detach", "iter", "format", "size", "dim", "requires_grad"}
"""Functions that compute nothing."""

Functions = str | Callable[..., Any] | Sequence[str | Callable[..., Any]] | None
"""Names of functions, globs of them, functions, or a list of those; None for all."""

Keep = Literal["shapes", "reference", "clone", "cpu"]


@whole
class FunctionProbe:
    """Record what torch functions return inside the layers of a model while a `with` block runs it.

    Each value is named `<layer>/<function>#<k>`: the innermost layer that runs (`""` is the model itself), and the k-th
    call of that function inside that call of that layer. `record["blocks.0/add#1"]` is the second `x + y` of a block;
    `record["blocks.0/softmax"]` will do where there is one softmax. A layer that runs several times has several calls
    of each name, in order: `record.calls("blocks.0/add#1")[2]`. Values are detached; the model runs in its own mode.

    Args:
        model: any module.
        layers: layers to look inside (see `Selection`), not including layers below them; None for all and the model.
        functions: names of functions, globs (`"*softmax"`), or functions (`F.softmax`); None for all that return
            floating-point or complex tensors. `x + y`, `x.add_(y)` and `torch.add(x, y)` are all `add`.
        keep: `"shapes"` (default) keeps tensors without memory, on the meta device, to see what there is; the others
            as in `Probe`.
        reduce: applied to each value; only its result is kept.

    Raises:
        LayerNotFound: when a layer selection matches nothing; on leaving the block, when a selected function was not
            called, or nothing was seen at all. Names the nearest.
        OptionError: when `keep` is unknown.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=-1))
        >>> with FunctionProbe(net, functions="softmax", keep="clone") as record:
        ...     _ = net(torch.ones(1, 2))
        >>> record["1/softmax"].shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Selection = None,
        functions: Functions = None,
        *,
        keep: Keep = "shapes",
        reduce: Callable[[Any], Any] | None = None,
    ) -> None:
        choose("keep policy", keep, ("shapes", "reference", "clone", "cpu"))
        self._model, self._running = model, Running(model)
        modules = Layers(model)
        inside = None if layers is None else set(modules.select(layers))
        self._watch = _Watch(self._running, inside, functions, keep, reduce)
        self._stack = contextlib.ExitStack()
        self._open = False
        self.record = self._watch.record

    def follow(self, record: Callable[[], Record] | None = None, *, axes: AxesOf | None = None) -> None:
        """Set what follows the axes of values: a record of the same values with theirs, or what returns a tensor's."""
        self._watch.follow, self._watch.axes = record, axes

    def around(self, forward: Forward | None) -> Callable[..., Any] | None:
        """Return `forward` so that its computations outside all layers count as those of the model."""
        return self._running.around(forward)

    def __enter__(self) -> Record:
        if self._open:
            raise OptionError("this probe is already attached; make a second FunctionProbe to nest them.")
        self._open = True
        with contextlib.ExitStack() as stack:
            if is_compiled(self._model):
                stack.enter_context(as_written(self._model))
                stack.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", message=".*when there are global hooks on modules")
            stack.enter_context(self._running)
            stack.enter_context(self._watch)
            self._stack = stack.pop_all()
        return self.record

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        self._stack.close()
        if kind is not None:
            self.record.partial = True
        else:
            self._watch.check()


@public
def functions(
    model: nn.Module,
    x: Input,
    layers: Selection = None,
    functions: Functions = None,
    *,
    keep: Keep = "shapes",
    reduce: Callable[[Any], Any] | None = None,
    forward: Forward | None = None,
) -> Record:
    """Run `model` once, in eval mode and without gradients, and record the results of torch functions in its layers.

    Values are named, and limited, as in `FunctionProbe`.

    Args:
        layers: layers to look inside, not including layers below them; None for all and the model itself.
        functions: names, globs, or functions; None for all that return floating-point tensors.
        keep: `"shapes"` (default) lists without memory; `"clone"`, `"reference"` and `"cpu"` keep values.
        reduce: applied to each value; only what it returns is kept.

    Raises:
        LayerNotFound: when no layer, or no function inside of the layers, matches; names the nearest.
        OptionError: when `keep` is unknown.

    Example:
        >>> class Residual(nn.Module):
        ...     def forward(self, x):
        ...         return x + torch.tanh(x)
        >>> list(functions(Residual(), torch.ones(1, 2)))
        ['/tanh#0', '/add#0']
    """
    probe, given = FunctionProbe(model, layers, functions, keep=keep, reduce=reduce), as_inputs(x)
    probe.follow(functools.cache(functools.partial(_followed, model, given, layers, functions, forward)))
    with borrowed(model, grad=False), probe as record:
        given.run(model, probe.around(forward))
    return record


def _followed(
    model: nn.Module, inputs: Inputs, layers: Selection, functions: Functions, forward: Forward | None
) -> Record:
    """Return the record of a run in which the axes of every value are followed."""
    probe = FunctionProbe(model, layers, functions)

    def watch(axes: AxesOf) -> FunctionProbe:
        probe.follow(axes=axes)
        return probe

    with borrowed(model, grad=False):
        follow(model, inputs, probe.around(forward), names_of(model), watch=watch)
    return probe.record


class _Watch(TorchFunctionMode):
    """Sees every call of a torch function and records the selected ones."""

    def __init__(
        self,
        running: Running,
        inside: set[LayerPath] | None,
        functions: Functions,
        keep: str,
        reduce: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__()
        self.record = Record([])
        self._running, self._inside, self._keep, self._reduce = running, inside, keep, reduce
        given = [functions] if isinstance(functions, str) or callable(functions) else functions
        self._globs = None if given is None else [f if isinstance(f, str) else function_name(f) for f in given]
        self._not_called, self._seen = set(self._globs or ()), set[str]()
        self.follow: Callable[[], Record] | None = None
        self.axes: AxesOf | None = None

    def __torch_function__(
        self, function: Callable[..., Any], kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        frame = self._running.frame
        if (
            frame is None
            or (recomputing() and self.axes is None)
            or (self._inside is not None and frame.layer not in self._inside)
        ):
            return result
        name = function_name(function)
        value = args[0] if name == "setitem" else result  # it writes, and returns nothing
        tensors = [tensor for _, tensor in named_tensors(value)] if name not in _UNSEEN else []
        if tensors:
            index = frame.counts[name]
            frame.counts[name] += 1
            self._seen.add(name)
            if self._is_selected(name, tensors):
                self._note(frame.layer, name, index, value)
        return result

    def _is_selected(self, name: str, tensors: list[torch.Tensor]) -> bool:
        if self._globs is None:
            return any(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors)
        met = {glob for glob in self._globs if fnmatch.fnmatchcase(name, glob)}
        self._not_called -= met
        return bool(met)

    def _note(self, layer: LayerPath, name: str, index: int, result: Any) -> None:
        if self._reduce is not None:
            value = stored(self._reduce(result), "clone", False)
        elif self._keep == "shapes":
            value = map_tensors(result, _shape)
        else:
            value = stored(result, self._keep, False)
        held = versions(value) if self._reduce is None and self._keep == "reference" else ()
        place, record = f"{layer}/{name}#{index}", self.record
        if index == 0:
            record.aliases.setdefault(f"{layer}/{name}", place)
        else:
            record.aliases[f"{layer}/{name}"] = f"{layer}/{name}"  # ambiguous: none of several
        record.declare(place)
        number = len(record.calls(place))
        known: Callable[[], CallSite] | str = UNKNOWN if self._reduce is None else REDUCED
        if self.axes is not None:
            tensors = tensors_of(None, result)
            found = {name: self.axes(tensor) or constant(sizes_of(tensor)) for name, tensor in tensors.items()}
            site = CallSite(place, number, found, {}, next(iter(found)) if len(found) == 1 else "")
            known = lambda: site  # noqa: E731
        elif self.follow is not None and self._reduce is None:
            known = functools.partial(_site, self.follow, place, number)
        record.add(Call(place, number, record.count, name, known, value, stored=held))

    def check(self) -> None:
        """Check that the selected functions were called, if the model ran at all.

        Raises:
            LayerNotFound: when one was not.
        """
        if not self._running.ran or (self.record.count and not self._not_called):
            return
        what = ", ".join(repr(glob) for glob in sorted(self._not_called)) or "that returns floating-point tensors"
        near = "".join(suggestion(glob, sorted(self._seen)) for glob in sorted(self._not_called))
        where = "" if self._inside is None else " inside of the selected layers"
        seen = ", ".join(sorted(self._seen)[:20]) or "none"
        raise LayerNotFound(f"no function {what} was called{where}.{near} Called: {seen}.")


def _site(follow: Callable[[], Record], place: LayerPath, number: int) -> CallSite:
    """Follow one value.

    Raises:
        AxesUnknown: when the model took another route.
    """
    calls = follow().calls(place)
    if number >= len(calls):
        raise AxesUnknown(f"{place!r} was not computed when its axes were followed: the route of this model changes.")
    return calls[number].site


def function_name(function: Callable[..., Any]) -> str:
    """Return the simple name of a torch function: `add` for `x + y`, `x += y`, `x.add_(y)` and `torch.add(x, y)`."""
    name = str(getattr(function, "__name__", type(function).__name__)).partition(".")[0].strip("_")
    return _NAMES.get(name, name)


def _shape(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of this shape and type on the meta device, which takes no memory."""
    size = tuple(tensor.shape) if not tensor.is_nested else _largest(tensor)
    return torch.empty((), dtype=tensor.dtype, device="meta").expand(size)


def _largest(tensor: torch.Tensor) -> tuple[int, ...]:
    parts = [part.shape for part in tensor.unbind()]
    return (len(parts), *map(max, zip(*parts, strict=True)))
