"""Records in other forms: units of a layer, numpy, xarray, pandas; and where two records differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from layerlens.axes.layout import named as names_of, positions
from layerlens.errors import RecordError, TargetError, need
from layerlens.model.tensors import tensor_path
from layerlens.model.trees import as_array, describe, named_tensors

from .call import Call
from .storage import outline

if TYPE_CHECKING:
    import pandas
    import xarray

    from .record import Record


def called(record: Record, call: int) -> Call:
    """Return one call of the only layer in `record`.

    Raises:
        TargetError: when the record holds several layers.
        RecordError: when there is no such call.
    """
    paths = list(record)
    if len(paths) != 1:
        raise TargetError(f"a unit is of one layer; the selection matches {len(paths)}: {', '.join(paths[:8])}.")
    calls = record.calls(paths[0])
    if not -len(calls) <= call < len(calls):
        raise RecordError(f"layer {paths[0]!r} ran {len(calls)} time(s); there is no call {call}.")
    return calls[call]


def read_units(record: Record, call: int, *, tensor: str | None = None) -> torch.Tensor:
    """Return the recorded output of one call of the only layer in `record`, `(batch, unit, *places)`.

    Args:
        record: record of one layer.
        call: index of the call.
        tensor: name of the tensor of the output; None for the only one.

    Raises:
        AxesUnknown: when the axis of samples, or of units, is not known.
        TargetError: when the record holds several layers.
        RecordError: when there is no such call, or its output is not a tensor with units.
        SelectionError: when the call returned several tensors and none was named.
    """
    found = called(record, call)
    name, output = (tensor, found.tensors[tensor]) if tensor else found.single() or ("", None)
    if output is None or output.ndim < 2:
        raise RecordError(f"layer {found.layer!r} returned {describe(found.output)}, which has no known axis of units.")
    rows, units = found.site.batch_axis(output, name), found.site.unit_axis(output, name)
    if rows is None:
        raise RecordError(f"all samples share what layer {found.layer!r} returned, so none has a value of its own.")
    return output.movedim(rows, 0).unsqueeze(1) if units is None else output.movedim((rows, units), (0, 1))


def named_outputs(record: Record) -> Iterator[tuple[str, Call, torch.Tensor]]:
    """Yield every tensor of the outputs by name.

    Yields:
        Name, call, tensor. The name is `layer`, `layer#1` for its second call, `layer:0` inside a nested output,
        `layer/h_n` for a tensor that was recorded by its name.
    """
    for call in record.order:
        place = f"{call.layer or '(model)'}#{call.index}" if call.index else call.layer or "(model)"
        for name, tensor in named_tensors(call.output):
            alone = tensor_path(place, call.names[0]) if call.names and not name else place
            yield (f"{place}:{name}" if name else alone), call, tensor


def _uniquely_named(record: Record) -> Iterator[tuple[str, Call, torch.Tensor]]:
    """Yield the same as `named_outputs`.

    Yields:
        Name, call, tensor.

    Raises:
        RecordError: when two tensors have one name, as in `{"a.b": x, "a": {"b": y}}`.
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
    """Return every tensor as an array, by name; types that numpy does not have (bfloat16, float8) become float32."""
    return {name: _as_numpy(call, tensor) for name, call, tensor in _uniquely_named(record)}


def to_xarray(record: Record) -> xarray.Dataset:
    """Return a `Dataset` with the names of axes that were followed, and positions in the input as coordinates.

    An axis that is not known is called `<name>_<number of the axis>`.
    """
    package = need("xarray", "to_xarray")
    arrays = {}
    named = list(_uniquely_named(record))
    known = {name: call.axes_of(tensor) for name, call, tensor in named}
    sizes = Counter(axis.size for axes in known.values() for axis in axes or () if axis.name == "batch")
    samples = max(sizes, key=lambda size: sizes[size], default=0)
    for name, call, tensor in named:
        array, exact = _as_numpy(call, tensor), known[name]
        axes = range(tensor.ndim) if exact is None else names_of(exact)
        # the batch is the same everywhere; other axes, and those of one entry for all samples, are each layer's own
        dims = [
            str(axis) if axis == "batch" and size == samples else f"{name}_{axis}"
            for axis, size in zip(axes, array.shape, strict=True)
        ]
        placed = {dim: positions(axis) for dim, axis in zip(dims, exact or (), strict=False)}
        sized = dict(zip(dims, array.shape, strict=True))
        coordinates = {dim: places for dim, places in placed.items() if places and len(places) == sized[dim]}
        about = {"type": call.type, "order": call.order}
        arrays[name] = package.DataArray(array, dims=dims, coords=coordinates, attrs=about)
    dataset: xarray.Dataset = package.Dataset(arrays)
    return dataset


def to_pandas(record: Record) -> pandas.DataFrame:
    """Return statistics of every tensor, one row each."""
    package = need("pandas", "to_pandas")
    rows = [{"name": name, **_statistics(call, tensor)} for name, call, tensor in named_outputs(record)]
    columns = ["name", "layer", "call", "type", "shape", "dtype", *_NUMBERS]
    table: pandas.DataFrame = package.DataFrame(rows, columns=columns).set_index("name")
    return table


_NUMBERS = ("mean", "std", "min", "max", "zeros", "not finite")


def _statistics(call: Call, tensor: torch.Tensor) -> dict[str, Any]:
    kind, tensor = str(tensor.dtype).removeprefix("torch."), _dense(call, tensor)
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
    """Say where two records differ first; None if they are equal."""
    routes = [[f"{call.layer}#{call.index}" for call in record.order] for record in (one, other)]
    for number, pair in enumerate(zip(*routes, strict=False)):
        if pair[0] != pair[1]:
            return f"call {number} of the run is {pair[0]} in one and {pair[1]} in the other"
    if len(routes[0]) != len(routes[1]):
        return f"one holds {len(routes[0])} calls, the other {len(routes[1])}"
    for mine, theirs in zip(one.order, other.order, strict=True):
        place = f"layer {mine.layer!r}, call {mine.index}"
        parts: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        outlines = [outline(call.output, found) for call, found in zip((mine, theirs), parts, strict=True)]
        if difference := _outline_difference(outlines[0], outlines[1], rtol, atol):
            return f"{place}: {difference}"
        for a, b in zip(*parts, strict=True):
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                return f"{place}: {describe(a)} in one, {describe(b)} in the other"
            a, b = _dense(mine, a), _dense(theirs, b).to(a.device)
            if not torch.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True):
                return f"{place}: values differ by up to {_largest_difference(a, b)}"
    return None


def _outline_difference(one: Any, other: Any, rtol: float, atol: float) -> str | None:
    """Say where two outlines differ in nesting or in numbers and texts; objects kept by their text only are equal."""
    ((kind, a),), ((other_kind, b),) = one.items(), other.items()
    if "text" in (kind, other_kind):  # the text of an object may include its address
        return (
            None
            if {kind, other_kind} <= {"text", "plain"}
            else f"{_outline_text(one)} in one, {_outline_text(other)} in the other"
        )
    if kind == other_kind == "plain":
        numbers = all(isinstance(value, (int, float)) for value in (a, b))
        same = bool(np.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)) if numbers else a == b
        return None if same else f"{a!r} in one, {b!r} in the other"
    if kind != other_kind or (kind != "tensor" and len(a) != len(b)):
        return f"{_outline_text(one)} in one, {_outline_text(other)} in the other"
    if kind == "tensor":
        return None
    if kind == "dict":
        if [key for key, _ in a] != [key for key, _ in b]:
            return f"{_outline_text(one)} in one, {_outline_text(other)} in the other"
        a, b = [part for _, part in a], [part for _, part in b]
    return next((found for x, y in zip(a, b, strict=True) if (found := _outline_difference(x, y, rtol, atol))), None)


def _outline_text(described: Any) -> str:
    ((kind, content),) = described.items()
    if kind == "dict":
        return f"dict with {', '.join(str(key) for key, _ in content)}"
    return {"tensor": "a tensor", "plain": repr(content), "text": str(content)}.get(kind) or f"{kind} of {len(content)}"


def _largest_difference(a: torch.Tensor, b: torch.Tensor) -> str:
    """Return the largest difference of two tensors of one shape, as text."""
    wide = torch.complex128 if a.is_complex() else torch.float64 if a.is_floating_point() else torch.int64
    gap = (a.to(wide) - b.to(wide)).abs()
    return f"{float(gap.double().nan_to_num(nan=float('inf'), posinf=float('inf')).max()):.3g}"


def _dense(call: Call, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in a dense layout that torch can compute with.

    Raises:
        RecordError: when it is nested or has no data.
    """
    tensor = tensor.detach()
    if tensor.is_nested or tensor.is_meta:
        why = "parts of different length" if tensor.is_nested else "no data"
        raise RecordError(
            f"layer {call.layer!r}, call {call.index}: {describe(tensor)} has {why}, so it is not an array."
        )
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    tensor = tensor if tensor.layout is torch.strided else tensor.to_dense()
    few_operations = tensor.is_floating_point() and tensor.itemsize == 1  # float8
    return tensor.float() if few_operations else tensor


def _as_numpy(call: Call, tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return as_array(_dense(call, tensor).resolve_conj().resolve_neg())
