"""Records for other tools: numpy, xarray, pandas; and where two records differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from layerlens.errors import RecordError, need
from layerlens.model.trees import as_array, describe, named_tensors

from .call import Call
from .record import Record
from .record_batches import batch_size, part_axes
from .storage import outline


def named_outputs(record: Record) -> Iterator[tuple[str, Call, torch.Tensor]]:
    """(name, call, tensor) of every tensor: `layer`, `layer#2` from the second call on, `layer.0` inside a nest."""
    for call in record.order:
        place = f"{call.layer or '(model)'}#{call.index}" if call.index else call.layer or "(model)"
        for name, tensor in named_tensors(call.output):
            yield (f"{place}:{name}" if name else place), call, tensor


def _distinct(record: Record) -> Iterator[tuple[str, Call, torch.Tensor]]:
    """As `named_outputs`, where no name may stand for two tensors.

    Raises:
        RecordError: when one does, as in `{"a.b": x, "a": {"b": y}}`.
    """
    seen = set()
    for name, call, tensor in named_outputs(record):
        if name in seen:
            raise RecordError(
                f"layer {call.layer!r}, call {call.index}: two tensors of its output have the name {name!r}. Read them "
                "from record.calls, or capture without this layer."
            )
        seen.add(name)
        yield name, call, tensor


def to_numpy(record: Record) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor as an array, by name; what numpy does not know (bfloat16, float8) becomes float32."""
    return {name: _array(call, tensor) for name, call, tensor in _distinct(record)}


def to_xarray(record: Record) -> Any:
    """A `Dataset` with named axes; those that are not known are called `<name>_<axis>`."""
    xarray = need("xarray", "to_xarray")
    arrays = {}
    named = list(_distinct(record))
    known = {name: part_axes(call, name.partition(":")[2], tensor) for name, call, tensor in named}
    samples = batch_size(record) if any(tensor.ndim for _, _, tensor in named) else 0
    for name, call, tensor in named:
        array, axes = _array(call, tensor), known[name] or range(tensor.ndim)
        # the batch is the same everywhere; other axes, and those of one entry for all samples, are each layer's own
        dims = [
            str(axis) if axis == "batch" and size == samples else f"{name}_{axis}"
            for axis, size in zip(axes, array.shape, strict=True)
        ]
        arrays[name] = xarray.DataArray(array, dims=dims, attrs={"type": call.type, "order": call.order})
    return xarray.Dataset(arrays)


def to_pandas(record: Record) -> Any:
    """Statistics of every tensor, one row each."""
    pandas = need("pandas", "to_pandas")
    rows = [{"name": name, **_statistics(call, tensor)} for name, call, tensor in named_outputs(record)]
    columns = ["name", "layer", "call", "type", "shape", "dtype", *_NUMBERS]
    return pandas.DataFrame(rows, columns=columns).set_index("name")


_NUMBERS = ("mean", "std", "min", "max", "zeros", "not finite")


def _statistics(call: Call, tensor: torch.Tensor) -> dict[str, Any]:
    kind, tensor = str(tensor.dtype).removeprefix("torch."), _plain(call, tensor)
    row: dict[str, Any] = {"layer": call.layer, "call": call.index, "type": call.type}
    row |= {"shape": tuple(tensor.shape), "dtype": kind}
    values = tensor.abs().double() if tensor.is_complex() else tensor.double()
    finite = values[torch.isfinite(values)]
    some = bool(finite.numel())
    numbers = (
        float(finite.mean()) if some else float("nan"),
        float(finite.std(correction=0)) if some else float("nan"),
        float(finite.min()) if some else float("nan"),
        float(finite.max()) if some else float("nan"),
        float((values == 0).double().mean()) if values.numel() else float("nan"),
        int(values.numel() - finite.numel()),
    )
    return row | dict(zip(_NUMBERS, numbers, strict=True))


def difference(one: Record, other: Record, *, rtol: float = 0.0, atol: float = 0.0) -> str | None:
    """The first place where two records differ, as a sentence; None where they are equal."""
    places = [[f"{call.layer}#{call.index}" for call in record.order] for record in (one, other)]
    for number, pair in enumerate(zip(*places, strict=False)):
        if pair[0] != pair[1]:
            return f"call {number} of the run is {pair[0]} in one and {pair[1]} in the other"
    if len(places[0]) != len(places[1]):
        return f"one holds {len(places[0])} calls, the other {len(places[1])}"
    for mine, theirs in zip(one.order, other.order, strict=True):
        place = f"layer {mine.layer!r}, call {mine.index}"
        parts: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        outlines = [outline(call.output, found) for call, found in zip((mine, theirs), parts, strict=True)]
        if apart := _apart(outlines[0], outlines[1], rtol, atol):
            return f"{place}: {apart}"
        for a, b in zip(*parts, strict=True):
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                return f"{place}: {describe(a)} in one, {describe(b)} in the other"
            a, b = _plain(mine, a), _plain(theirs, b).to(a.device)
            if not torch.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True):
                return f"{place}: values differ by up to {_gap(a, b)}"
    return None


def _apart(one: Any, other: Any, rtol: float, atol: float) -> str | None:
    """Where two outlines differ in nesting, or in what is no tensor; objects without a text of their own are equal."""
    ((kind, a),), ((other_kind, b),) = one.items(), other.items()
    if "text" in (kind, other_kind):  # what such an object looks like may hold its address
        return None if {kind, other_kind} <= {"text", "plain"} else f"{_told(one)} in one, {_told(other)} in the other"
    if kind == other_kind == "plain":
        numbers = all(isinstance(value, (int, float)) for value in (a, b))
        same = bool(np.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)) if numbers else a == b
        return None if same else f"{a!r} in one, {b!r} in the other"
    if kind != other_kind or (kind != "tensor" and len(a) != len(b)):
        return f"{_told(one)} in one, {_told(other)} in the other"
    if kind == "tensor":
        return None
    if kind == "dict":
        if [key for key, _ in a] != [key for key, _ in b]:
            return f"{_told(one)} in one, {_told(other)} in the other"
        a, b = [part for _, part in a], [part for _, part in b]
    return next((found for x, y in zip(a, b, strict=True) if (found := _apart(x, y, rtol, atol))), None)


def _told(described: Any) -> str:
    ((kind, content),) = described.items()
    if kind == "dict":
        return f"dict with {', '.join(str(key) for key, _ in content)}"
    return {"tensor": "a tensor", "plain": repr(content), "text": str(content)}.get(kind) or f"{kind} of {len(content)}"


def _gap(a: torch.Tensor, b: torch.Tensor) -> str:
    """The largest difference of two tensors of one shape, as text."""
    wide = torch.complex128 if a.is_complex() else torch.float64 if a.is_floating_point() else torch.int64
    gap = (a.to(wide) - b.to(wide)).abs()
    return f"{float(gap.double().nan_to_num(nan=float('inf'), posinf=float('inf')).max()):.3g}"


def _plain(call: Call, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as one of dense layout that torch can compute with.

    Raises:
        RecordError: when it is nested or has no data.
    """
    tensor = tensor.detach()
    if tensor.is_nested or tensor.is_meta:
        why = "parts of different length" if tensor.is_nested else "no data"
        raise RecordError(f"layer {call.layer!r}, call {call.index}: {describe(tensor)} has {why}, so it is no array.")
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    tensor = tensor if tensor.layout is torch.strided else tensor.to_dense()
    return (
        tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor
    )  # float8 has few operations


def _array(call: Call, tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return as_array(_plain(call, tensor).resolve_conj().resolve_neg())
