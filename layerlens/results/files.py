"""Results on disk: one npz file of plain arrays and one JSON description; no pickle is written or read."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerlens.errors import ResultFileError
from layerlens.files import whole, with_ending
from layerlens.model.trees import as_array

FORMAT = "layerlens-result/1"


def write(path: str | os.PathLike[str], value: object) -> Path:
    """Write a result dataclass to `path` in one step: a reader sees the old file or the whole new one.

    Raises:
        ResultFileError: if the folder does not exist, or the name has the ending of another format.
    """
    name = Path(path).name
    instead = f". A table is result.to_pandas().to_csv({name!r})" if hasattr(value, "to_pandas") else ""
    if name.lower().endswith((".png", ".pdf", ".svg")):
        instead = f". A figure is result.plot().save({name!r})"
    path = with_ending(path, ".npz", "a result", instead)
    if not path.parent.is_dir():
        raise ResultFileError(f"cannot save to {path}: the folder {path.parent} does not exist. Make it first.")
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    description = json.dumps({"format": FORMAT, "value": _encode(value, arrays)})
    arrays["description"] = np.frombuffer(description.encode(), dtype=np.uint8)
    with whole(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return path


def read(path: str | os.PathLike[str], classes: Mapping[str, type[Any]]) -> Any:
    """Read what `write` wrote; `classes` are the dataclasses that a file may name.

    Raises:
        ResultFileError: when the file is missing, damaged, or of another kind.
    """
    path = Path(path)
    if path.suffix != ".npz" and not path.exists():
        path = path.with_name(f"{path.name}.npz")  # as it was saved
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        description = json.loads(bytes(arrays["description"]).decode())
        if description["format"] != FORMAT:
            raise ResultFileError(f"{path} has format {description['format']!r}; this layerlens reads {FORMAT!r}.")
        return _decode(description["value"], arrays, classes)
    except FileNotFoundError as error:
        raise ResultFileError(f"there is no file {path}.") from error
    except (
        *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError),
        *(zipfile.BadZipFile, zlib.error),
    ) as error:
        if isinstance(error, ResultFileError):
            raise
        raise ResultFileError(f"{path} is not a result of layerlens, or is damaged ({error}).") from error


def _encode(value: object, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        name = f"array{len(arrays)}"
        arrays[name] = as_array(value)
        return {"tensor": name, "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, (tuple, list)):
        return {"tuple" if isinstance(value, tuple) else "list": [_encode(part, arrays) for part in value]}
    if isinstance(value, Mapping):
        return {"dict": [[_encode(key, arrays), _encode(part, arrays)] for key, part in value.items()]}
    if dataclasses.is_dataclass(value):
        fields = {field.name: _encode(getattr(value, field.name), arrays) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, "fields": fields}
    raise ResultFileError(f"cannot save a value of type {type(value).__name__}: {value!r}.")


def _decode(value: Any, arrays: Mapping[str, np.ndarray[Any, Any]], classes: Mapping[str, type[Any]]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return torch.from_numpy(arrays[value["tensor"]].copy()).to(getattr(torch, value["dtype"]))
    if "tuple" in value:
        return tuple(_decode(part, arrays, classes) for part in value["tuple"])
    if "list" in value:
        return [_decode(part, arrays, classes) for part in value["list"]]
    if "dict" in value:
        return {_decode(key, arrays, classes): _decode(part, arrays, classes) for key, part in value["dict"]}
    return classes[value["class"]](**{name: _decode(part, arrays, classes) for name, part in value["fields"].items()})
