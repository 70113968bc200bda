"""Inputs that a model does not take: which layer failed, and which change of the input it takes, by experiment."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.autograd import forward_ad

from layerlens.errors import InputError, suggestion
from layerlens.model.borrowed import borrowed
from layerlens.model.placement import home
from layerlens.model.trees import describe, first_tensor, named_tensors

if TYPE_CHECKING:
    from .inputs import Forward, Inputs

Changed = Callable[[torch.Tensor], torch.Tensor]
Change = tuple[str, str, Changed]
"""What is wrong, the code of the change with `{}` for the tensor, and the change itself."""

WIDTHS = {"in_features": "numbers", "input_size": "numbers", "in_channels": "channels", "num_features": "channels"}
"""Attributes of layers that say how many numbers they take, and what these are."""

BATCH: Change = ("the batch axis is missing", "{}.unsqueeze(0)", lambda x: x.unsqueeze(0))
LAST = "the channels are last, and the model takes them before the places"
COLOR = "the pictures are in color, and the model takes gray ones"
ORDER = "the axes are in another order"
AXES: list[tuple[int, tuple[int, int, int] | None, Change]] = [
    (2, None, (ORDER, "{}.T", lambda x: x.T)),
    (2, None, (f"{BATCH[0]}; {ORDER}", "{}.T.unsqueeze(0)", lambda x: x.T.unsqueeze(0))),
    (3, (2, 1, 4), (f"{BATCH[0]}; {LAST}", "{}.permute(2, 0, 1).unsqueeze(0)", lambda x: x.permute(2, 0, 1)[None])),
    (3, None, (ORDER, "{}.transpose(1, 2)", lambda x: x.transpose(1, 2))),
    (3, None, (ORDER, "{}.transpose(0, 1)", lambda x: x.transpose(0, 1))),
    (4, (3, 1, 4), (LAST, "{}.permute(0, 3, 1, 2)", lambda x: x.permute(0, 3, 1, 2))),
    (4, (1, 1, 1), ("the pictures are gray", "{}.expand(-1, 3, -1, -1)", lambda x: x.expand(-1, 3, -1, -1))),
    (4, (1, 3, 3), (COLOR, "{}.mean(1, keepdim=True)", lambda x: x.mean(1, keepdim=True))),
    (5, (4, 1, 4), (LAST, "{}.permute(0, 4, 1, 2, 3)", lambda x: x.permute(0, 4, 1, 2, 3))),
    (2, None, ("an axis is missing", "{}.unsqueeze(1)", lambda x: x.unsqueeze(1))),
    (2, None, ("an axis is missing", "{}.unsqueeze(-1)", lambda x: x.unsqueeze(-1))),
    (3, None, ("an axis is missing", "{}.unsqueeze(1)", lambda x: x.unsqueeze(1))),
    (1, None, ("two axes are missing", "{}[None, None]", lambda x: x[None, None])),
    (1, None, ("two axes are missing", "{}[None, :, None]", lambda x: x[None, :, None])),
    (2, None, ("two axes are missing", "{}[None, None]", lambda x: x[None, None])),
    (3, None, ("the model takes one axis after the batch", "{}.flatten(1)", lambda x: x.flatten(1))),
    (4, None, ("the model takes one axis after the batch", "{}.flatten(1)", lambda x: x.flatten(1))),
    (3, (0, 1, 1), ("there is an axis too many", "{}.squeeze(0)", lambda x: x.squeeze(0))),
    (4, (0, 1, 1), ("there is an axis too many", "{}.squeeze(0)", lambda x: x.squeeze(0))),
    (5, (0, 1, 1), ("there is an axis too many", "{}.squeeze(0)", lambda x: x.squeeze(0))),
]  # fmt: skip
"""Changes of one tensor that has so many axes, and at an axis at least and at most so many entries."""


def explained(model: nn.Module, inputs: Inputs, forward: Forward | None, error: Exception) -> InputError | None:
    """Return why a model failed on an input, and what it takes; None if that is not known to be the input's fault.

    Changes of axes, dtype and device are tried on the model, which is borrowed; only one with which it runs is advised.

    Args:
        model: the model.
        inputs: what it was given.
        forward: called instead of the model.
        error: what it raised.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return None
    if isinstance(error, TypeError) and (wrong := _misplaced(model, inputs, forward)) is not None:
        return InputError(wrong)
    layer = _failed(model, error)
    why = " ".join(str(error).split())[:200]
    where = f"layer {layer[0]!r}, {_short(layer[1])}, failed" if layer and layer[0] else "it failed"
    start = f"{type(model).__name__} does not take {inputs}: {where} ({why})."
    with borrowed(model, grad=False), forward_ad._set_fwd_grad_enabled(False):  # values alone, without tangents
        if _output(model, inputs, forward) is not None:
            return None  # it runs like this, so the error is of gradients or the like
        for change in _changes(model, inputs):
            if _output(model, inputs, forward, change[2]) is not None:
                wrong = change[0][0].upper() + change[0][1:]
                return InputError(f"{start} {wrong}: it runs with {_typed(inputs, change)}.")
    wanted = None if layer is None else _wanted(layer[1], layer[2], inputs)
    return None if wanted is None else InputError(f"{start} {wanted}")


def one_sample(model: nn.Module, inputs: Inputs, forward: Forward | None) -> InputError | None:
    """Return the error of an input that is one sample without its batch axis; None if it is not.

    It is one if the model has no row of output for the first row alone, and the same output with an axis before it.

    Args:
        model: the model.
        inputs: the input.
        forward: called instead of the model.
    """
    with borrowed(model, grad=False):
        if _output(model, inputs, forward, lambda x: x[:1] if x.ndim else x) is not None:
            return None
        first, whole = _output(model, inputs, forward), _output(model, inputs, forward, BATCH[2])
    if first is None or whole is None or whole.shape != (1, *first.shape):
        return None
    return InputError(
        f"the first axis of an input is the batch, and {inputs} is one sample without it: {type(model).__name__} "
        f"returns {describe(first)}. Give {_typed(inputs, BATCH)}."
    )


def series_of_rows(model: nn.Module, inputs: Inputs, forward: Forward | None) -> InputError | None:
    """Return the error of an input whose rows are places of one sample, such as the steps of a series; None if not.

    It is one if the model returns the same numbers with an axis of one sample before the rows, or behind them.

    Args:
        model: a model whose axes show that the rows of this input are not samples.
        inputs: the input.
        forward: called instead of the model.
    """
    with borrowed(model, grad=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = _output(model, inputs, forward)
        for axis in (0, 1):
            whole = _output(model, inputs, forward, functools.partial(_with_axis, axis=axis))
            wanted = None if found is None or found.ndim < axis else found.unsqueeze(axis)
            if whole is None or wanted is None or whole.shape != wanted.shape or not _close(whole, wanted):
                continue
            swapped = ", with forward=lambda model, x: model(x.transpose(0, 1)).transpose(0, 1)" * axis
            name, tensor = next(iter(inputs.tensors().items()))
            axes = ("batch", *(f"axis {place}" for place in range(1, tensor.ndim)))
            return InputError(
                f"the first axis of an input is the batch, and the rows of {inputs} are places of one sample in "
                f"{type(model).__name__}: they influence each other, and it returns the same for a batch of one, "
                f"{describe(whole)}. Give {_typed(inputs, BATCH)}{swapped}. If they are samples all the same, say so: "
                f"layerlens.name_axes(model, {{{name!r}: {axes!r}}})."
            )
    return None


def _with_axis(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    return tensor.unsqueeze(min(axis, tensor.ndim))


def _close(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors are equal up to rounding."""
    if not first.is_floating_point():
        return torch.equal(first, second)
    scale = float(second.abs().max()) if second.numel() else 0.0
    return torch.allclose(first, second, rtol=0.0, atol=torch.finfo(first.dtype).eps ** 0.5 * scale, equal_nan=True)


def rows_reach_others(model: nn.Module, inputs: Inputs, forward: Forward | None, output: torch.Tensor) -> bool:
    """Return whether rows influence each other: whether the first half in reverse order gets another output.

    Args:
        model: the model, which runs once.
        inputs: at least two rows.
        forward: called instead of the model.
        output: the output for all of them, a row each.
    """
    rows = torch.arange((inputs.batch + 1) // 2).flip(0)
    with borrowed(model, grad=False):
        found = _output(model, inputs.rows(rows), forward)
    wanted = output[rows.to(output.device)]
    return found is None or found.shape != wanted.shape or not _close(found, wanted)


def refuse_pair(data: object) -> None:
    """Refuse samples and their labels in one tuple or list, which would be read as two samples.

    Raises:
        InputError: with the way to give labels.
    """
    shapes = [getattr(part, "shape", ()) for part in data] if isinstance(data, (tuple, list)) else []
    if len(shapes) != 2 or not all(shapes):
        return
    first, second = map(tuple, shapes)
    if first[0] == second[0] and first != second and second[1:] in ((), (1,)):
        x, y = (f"{type(part).__name__} {tuple(part.shape)}" for part in data)  # type: ignore[attr-defined]
        raise InputError(
            f"the data is a pair, {x} and {y}: samples and their labels. Give the samples alone, with labels=y where "
            "the method takes labels, or one data set of both: Data(x, labels=y), TensorDataset(x, y)."
        )


def _typed(inputs: Inputs, change: Change) -> str:
    """Return what to type for a changed input, and what it then is."""
    names, tensors = list(inputs.tensors()), inputs.tensors().values()
    names = ["x"] if names == ["0"] else [f"x[{name}]" if name.isdigit() else name for name in names]
    shown = ", ".join(describe(change[2](one)) for one in tensors)
    return f"{', '.join(change[1].format(name) for name in names)}, {shown}"


def _output(
    model: nn.Module,
    inputs: Inputs,
    forward: Forward | None,
    change: Changed | None = None,
) -> torch.Tensor | None:
    """Return the first tensor of the output; None if the model fails, or has no row for each sample of a changed input.

    Raises:
        OutOfMemoryError: as torch raises it.
    """
    try:
        copied = inputs.map(lambda one: one.detach().clone(), held=lambda one: one.detach().clone())
        changed = copied if change is None else copied.map(change)
        output = first_tensor(changed.call(model, forward))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever the model raises for an input that it does not take
        return None
    if change is None:
        return torch.empty(0) if output is None else output
    sizes = [len(one) for one in changed.tensors().values() if one.ndim]
    return output if output is not None and output.ndim and len(output) == sizes[0] else None


def _changes(model: nn.Module, inputs: Inputs) -> Iterator[Change]:
    """Yield changes, the smaller first, each of dtype and device, of axes, or of both.

    Yields:
        The changes.
    """
    casts, axes = list(_casts(model, inputs)), list(_axes(inputs))
    yield from casts
    yield from axes
    for wrong, code, cast in casts:
        for wrong_too, arranged, arrange in axes:
            yield f"{wrong_too}; {wrong}", code.format(arranged), _both(arrange, cast)


def _both(first: Changed, then: Changed) -> Changed:
    return lambda x: then(first(x))


def _casts(model: nn.Module, inputs: Inputs) -> Iterator[Change]:
    tensors, device = list(inputs.tensors().values()), home(model)
    kinds = {one.dtype for one in model.parameters() if one.is_floating_point()}
    kind = next(iter(kinds)) if len(kinds) == 1 else torch.float32
    given = ", ".join(dict.fromkeys(str(one.dtype).removeprefix("torch.") for one in tensors))
    name = str(kind).removeprefix("torch.")
    code = "{}.float()" if kind is torch.float32 else f"{{}}.to(torch.{name})"
    if device is not None and any(one.device != device for one in tensors):
        wrong = f"the input is on {tensors[0].device} and the model on {device}"
        yield wrong, f"{{}}.to({str(device)!r})", lambda x: x.to(device)
        yield f"{wrong}, and it has {name}", f"{{}}.to({str(device)!r}, torch.{name})", lambda x: x.to(device, kind)
    if all(one.dtype == torch.uint8 for one in tensors):
        yield f"the model takes {name}, not {given}", f"{code} / 255", lambda x: x.to(kind) / 255
    elif any(one.dtype != kind for one in tensors):
        yield f"the model takes {name}, not {given}", code, lambda x: x.to(kind)
        if any(one.is_floating_point() for one in tensors) and len(tensors) > 1:
            floats = f"{code} where it is floating-point"
            yield f"the model takes {name}", floats, lambda x: x.to(kind) if x.is_floating_point() else x
    if any(one.dtype != torch.int64 for one in tensors):
        yield f"the model takes whole numbers, int64, not {given}", "{}.long()", lambda x: x.long()


def _axes(inputs: Inputs) -> Iterator[Change]:
    yield BATCH
    tensors = list(inputs.tensors().values())
    if len(tensors) == 1:
        shape = tensors[0].shape
        yield from _pictures(shape)
        for axes, within, change in AXES:
            if axes == len(shape) and (within is None or within[1] <= shape[within[0]] <= within[2]):
                yield change


def _pictures(shape: torch.Size) -> Iterator[Change]:
    """Yield readings of what looks like flat pictures, or like one in color for a model of gray ones.

    Yields:
        The changes.
    """
    for channels in (1, 3) if len(shape) == 2 else ():
        side = math.isqrt(shape[1] // channels)
        if side >= 8 and channels * side**2 == shape[1]:
            form = (channels, side, side)
            yield (
                "the pictures are flat",
                f"{{}}.unflatten(1, {form})",
                functools.partial(torch.unflatten, dim=1, sizes=form),
            )
    if len(shape) == 3 and min(shape[:2]) >= 8 and shape[2] in (3, 4):
        yield (
            f"{BATCH[0]}; {LAST}; {COLOR}",
            "{}[..., :3].mean(-1)[None, None]",
            lambda x: x[..., :3].mean(-1)[None, None],
        )
    if len(shape) == 3 and min(shape[1:]) >= 8 and shape[0] == 3:
        yield f"{BATCH[0]}; {COLOR}", "{}.mean(0)[None, None]", lambda x: x.mean(0)[None, None]


def _failed(model: nn.Module, error: BaseException) -> tuple[str, nn.Module, list[torch.Tensor]] | None:
    """Return the innermost layer that an error came from: its path, itself, and the tensors that it was given."""
    paths = {id(module): path for path, module in model.named_modules()}
    found, step = None, error.__traceback__
    while step is not None:
        known = step.tb_frame.f_locals if step.tb_frame.f_code.co_name == "_call_impl" else {}
        module = known.get("self")
        if id(module) in paths and isinstance(module, nn.Module):
            tensors = [one for _, one in named_tensors([known.get("args", ()), known.get("kwargs", {})])]
            found = paths[id(module)], module, tensors
        step = step.tb_next
    return found


def _short(module: nn.Module) -> str:
    own = module.extra_repr()
    return f"{type(module).__name__}({own if len(own) < 60 else own[:57] + '...'})"


def _wanted(module: nn.Module, given: list[torch.Tensor], inputs: Inputs) -> str | None:
    """Say what a layer takes, where the first tensor it was given has another size, dtype or range."""
    if not given:
        return None
    x, top = given[0], getattr(module, "num_embeddings", None)
    if isinstance(top, int):
        if x.is_floating_point():
            return "It takes whole numbers: ids of tokens or categories, such as x.long()."
        if not x.is_meta and not 0 <= int(x.min()) <= int(x.max()) < top:
            return (
                f"It takes ids from 0 to {top - 1}, and was given ids from {int(x.min())} to {int(x.max())}. Give ids "
                f"of the vocabulary of this model, such as x.clamp(0, {top - 1})."
            )
        return None
    own = {one.dtype for one in module.parameters(recurse=False) if one.is_floating_point()}
    if len(own) == 1 and x.dtype not in own:
        kind = next(iter(own))
        return f"Its weights are {str(kind).removeprefix('torch.')}, and it was given {describe(x)}: try x.to({kind})."
    for name, what in WIDTHS.items():
        width, kernel = getattr(module, name, None), getattr(module, "kernel_size", None)
        if not isinstance(width, int) or not x.ndim:
            continue
        if isinstance(kernel, tuple):
            places = ("length",) if len(kernel) == 1 else ("depth", "height", "width")[-len(kernel) :]
            axis, form = -len(kernel) - 1, f"(batch, {width}, {', '.join(places)})"
        else:
            axis, form = (
                (-1, f"(..., {width})") if what == "numbers" else (min(1, x.ndim - 1), f"(batch, {width}, ...)")
            )
        if x.ndim < -axis or x.shape[axis] != width:
            form_wanted = f"of shape {form}." if _same(x, inputs) else "of the size that the model was made for."
            count = f"{width} {what[:-1] if width == 1 else what}"
            return f"It takes {count}, shape {form}, and was given {describe(x)}. Give an input {form_wanted}"
    return None


def _same(x: torch.Tensor, inputs: Inputs) -> bool:
    return any(x.shape == one.shape for one in inputs.tensors().values())


def _misplaced(model: nn.Module, inputs: Inputs, forward: Forward | None) -> str | None:
    """Say which arguments a model takes, if those given are others."""
    try:
        signature = inspect.signature(model.forward if forward is None else functools.partial(forward, model))
    except (TypeError, ValueError):  # a function without a signature
        return None
    try:
        signature.bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        takes = list(signature.parameters)
        tensors = list(inputs.tensors().values())
        unknown = [name for name in inputs.kwargs if name not in takes]
        start = f"{type(model).__name__} takes ({', '.join(takes)}), and was given {inputs}: {error}."
        if unknown:
            near = suggestion(unknown[0], takes)
            free = [name for name in takes if name not in inputs.kwargs]
            return f"{start}{near} Give {{{(free or takes)[0]!r}: ...}} instead of {{{unknown[0]!r}: ...}}."
        if len(inputs.args) > 1 and len({one.shape for one in tensors}) == 1:
            return f"{start} A list of samples is one tensor: torch.stack(x)."
        if len(inputs.args) == 2 and tensors[-1].ndim <= 1:
            return f"{start} Labels are a target, not an input: give x[0], with target=x[1]."
        return f"{start} Give a tensor for each of them, or a dict by name, such as {{{takes[0]!r}: x}}."
    return None
