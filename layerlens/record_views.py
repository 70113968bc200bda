"""Records for other tools: numpy, xarray, pandas; and where two records differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .call import Call
from .errors import MissingPackage
from .nested import describe, named_tensors
from .record import Record


def named_outputs(record: Record) -> Iterator[tuple[str, Call, torch.Tensor]]:
    """(name, call, tensor) of every tensor: `layer`, `layer#2` from the second call on, `layer.0` inside a nest."""
    for call in record.order:
        place = f"{call.layer or '(model)'}#{call.index}" if call.index else call.layer or "(model)"
        for name, tensor in named_tensors(call.output):
            yield (f"{place}:{name}" if name else place), call, tensor


def to_numpy(record: Record) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor as an array, by name; bfloat16 becomes float32."""
    return {name: _array(tensor) for name, _, tensor in named_outputs(record)}


def to_xarray(record: Record) -> Any:
    """A `Dataset` with named axes; those that are not known are called `<name>_<axis>`."""
    try:
        import xarray
    except ImportError as error:
        raise MissingPackage("to_xarray needs xarray: pip install 'layerlens[xarray]'.") from error
    arrays = {}
    for name, call, tensor in named_outputs(record):
        known = call.axes if call.axes is not None and len(call.axes) == tensor.ndim else None
        axes = [f"{name}_{axis}" for axis in range(tensor.ndim)]
        if known is not None:  # batch is the same everywhere; other axes have a size of each layer's own
            axes = [axis if axis == "batch" else f"{name}_{axis}" for axis in known]
        arrays[name] = xarray.DataArray(_array(tensor), dims=axes, attrs={"type": call.type, "order": call.order})
    return xarray.Dataset(arrays)


def to_pandas(record: Record) -> Any:
    """Statistics of every tensor, one row each."""
    try:
        import pandas
    except ImportError as error:
        raise MissingPackage("to_pandas needs pandas: pip install 'layerlens[pandas]'.") from error
    rows = [{"name": name, **_statistics(call, tensor)} for name, call, tensor in named_outputs(record)]
    columns = ["name", "layer", "call", "type", "shape", "dtype", *_NUMBERS]
    return pandas.DataFrame(rows, columns=columns).set_index("name")


_NUMBERS = ("mean", "std", "min", "max", "zeros", "not finite")


def _statistics(call: Call, tensor: torch.Tensor) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": call.layer, "call": call.index, "type": call.type, "shape": tuple(tensor.shape)}
    row["dtype"] = str(tensor.dtype).removeprefix("torch.")
    values = tensor.detach().double() if not tensor.is_complex() else tensor.detach().abs().double()
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
        a, b = dict(named_tensors(mine.output)), dict(named_tensors(theirs.output))
        if list(a) != list(b):
            return f"{place}: {describe(mine.output)} in one, {describe(theirs.output)} in the other"
        for name, tensor in a.items():
            if (tensor.shape, tensor.dtype) != (b[name].shape, b[name].dtype):
                return f"{place}: {describe(tensor)} in one, {describe(b[name])} in the other"
            if not torch.allclose(tensor, b[name].to(tensor.device), rtol=rtol, atol=atol, equal_nan=True):
                gap = (tensor.double() - b[name].to(tensor.device).double()).abs()
                return f"{place}: values differ by up to {float(gap.nan_to_num(nan=float('inf')).max()):.3g}"
    return None


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach().cpu()
    array: np.ndarray[Any, Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
