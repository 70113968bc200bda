"""Results on disk: one npz file of plain arrays and one JSON description, no pickle; and pages of HTML."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerlens.errors import ResultFileError
from layerlens.files import FREELY, no_place, parse_json, read_arrays, whole, with_ending
from layerlens.model.packing import type_named
from layerlens.model.trees import as_array, describe

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
    if why := no_place(path):
        raise ResultFileError(f"cannot save to {path}: {why}")
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    description = json.dumps({"format": FORMAT, "value": _encode(value, arrays)})
    arrays["description"] = np.frombuffer(description.encode(), dtype=np.uint8)
    small = sum(array.nbytes for array in arrays.values()) <= FREELY  # so that it can be read again, see `read_arrays`
    packing = zipfile.ZIP_DEFLATED if small else zipfile.ZIP_STORED
    with whole(path) as file, zipfile.ZipFile(file, "w", packing) as archive:  # np.savez of numpy 1.26 leaves it open
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    return path


def write_page(path: str | os.PathLike[str], title: str, body: str) -> Path:
    """Write HTML as a page that is light or dark as the reader's browser is; return its path.

    Args:
        path: file to write.
        title: title of the page.
        body: HTML of what it shows.

    Raises:
        ResultFileError: when the folder does not exist.
    """
    path = Path(path)
    if why := no_place(path):
        raise ResultFileError(f"cannot save to {path}: {why}")
    head = '<meta charset="utf-8"><meta name="color-scheme" content="light dark">'
    page = f'<!DOCTYPE html><html lang="en"><head>{head}<title>{title}</title></head><body>{body}</body></html>'
    with whole(path) as file:
        file.write(page.encode())
    return path


def read(path: str | os.PathLike[str], classes: Mapping[str, type[Any]]) -> Any:
    """Read what `write` wrote; `classes` are the dataclasses that a file may name.

    Raises:
        ResultFileError: when the file is missing, damaged, or of another kind.
    """
    path = Path(path)
    if path.suffix != ".npz" and not os.path.exists(path):
        path = path.with_name(f"{path.name}.npz")  # as it was saved
    try:
        arrays = read_arrays(path)
        description = parse_json(bytes(arrays.pop("description")))
        if description["format"] != FORMAT:
            kind = str(description["format"])[:40]
            raise ResultFileError(f"{path} has format {kind!r}; this layerlens reads {FORMAT!r}.")
        return _decode(description["value"], arrays, classes)
    except FileNotFoundError as error:
        raise ResultFileError(f"there is no file {path}.") from error
    except ResultFileError:
        raise
    except Exception as error:  # whatever a class of results raises on values that do not fit
        why = f"{error!s:.200}"
        raise ResultFileError(f"{path} is not a result of layerlens, or is damaged ({why}).") from error


def _encode(value: object, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        name = f"array{len(arrays)}"
        try:
            arrays[name] = as_array(value)
        except (TypeError, RuntimeError, NotImplementedError) as error:
            raise ResultFileError(f"cannot save {describe(value)}: {error!s:.200}") from error
        return {"tensor": name, "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, (tuple, list)):
        return {"tuple" if isinstance(value, tuple) else "list": [_encode(part, arrays) for part in value]}
    if isinstance(value, Mapping):
        return {"dict": [[_encode(key, arrays), _encode(part, arrays)] for key, part in value.items()]}
    if dataclasses.is_dataclass(value):
        fields = {field.name: _encode(getattr(value, field.name), arrays) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, "fields": fields}
    raise ResultFileError(f"cannot save a value of type {type(value).__name__}: {value!r}.")


def _decode(value: Any, arrays: dict[str, np.ndarray[Any, Any]], classes: Mapping[str, type[Any]]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        array, dtype = arrays.pop(value["tensor"]), type_named(value["dtype"])  # each is of one tensor
        if as_array(torch.zeros(0, dtype=dtype)).dtype != array.dtype:
            raise ValueError(f"{dtype} is not stored as {array.dtype}")
        return torch.from_numpy(array).to(dtype)
    if "tuple" in value:
        return tuple(_decode(part, arrays, classes) for part in value["tuple"])
    if "list" in value:
        return [_decode(part, arrays, classes) for part in value["list"]]
    if "dict" in value:
        return {_decode(key, arrays, classes): _decode(part, arrays, classes) for key, part in value["dict"]}
    return classes[value["class"]](**{name: _decode(part, arrays, classes) for name, part in value["fields"].items()})
