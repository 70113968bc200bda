"""Transforms: from pictures and tables, as people have them, to the input that a model takes."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerlens.errors import InputError, need
from layerlens.model.trees import describe, named_tensors

from .tables import Names, is_frame, is_series

LABELS = ("label", "labels")
"""Names of the label in a row of a data set."""


class Transform:
    """A transform of pictures, a processor of transformers, or fitted steps of scikit-learn.

    Args:
        given: a function of a picture, which returns a sample or a batch of one; a processor, known by its parameters
            `images` and `return_tensors`; or an object with `transform`, or a function, from tables to tables, whose
            rows are samples.
    """

    def __init__(self, given: Any) -> None:
        self.given = given
        self.function: Callable[..., Any] = given if callable(given) else given.transform
        try:
            parameters = inspect.signature(self.function).parameters
        except (TypeError, ValueError):  # a function without a signature
            parameters = {}  # type: ignore[assignment]
        self.parameters = set(parameters)
        options = any(one.kind is one.VAR_KEYWORD for one in parameters.values()) or "return_tensors" in parameters
        self.is_processor = "images" in parameters and options

    def __call__(self, x: Any) -> tuple[Any, Names]:
        """Return an input of a model and the names of its features; tensors, and what holds them, are kept as they are.

        Raises:
            InputError: when the transform fails, or returns samples of several shapes.
        """
        x = without_label(x)[0]
        if isinstance(x, Mapping) and _pictures(x) is None:
            found = {name: own for name, part in x.items() if (own := _pictures(part)) is not None}
            if found and self.is_processor and x.keys() <= self.parameters:
                return dict(self._run(**{**x, **found}, return_tensors="pt")), ()
            if len(found) > 1:
                raise InputError(f"the input holds several pictures, {', '.join(found)}: give one of them, x[name].")
            return self(next(iter(found.values()))) if found else (x, ())
        pictures = _pictures(x)
        if pictures is not None:
            if self.is_processor:
                return dict(self._run(images=pictures, return_tensors="pt")), ()
            return _stacked([self._run(picture) for picture in pictures]), ()
        if is_frame(x) or is_series(x) or isinstance(x, np.ndarray):
            return self._table(x)
        return x, ()

    def _run(self, *args: Any, **options: Any) -> Any:
        try:
            return self.function(*args, **options)
        except Exception as error:  # whatever the user's function raises
            what = describe_input(args[0] if args else options)
            raise InputError(
                f"the transform failed on {what}: {type(error).__name__}: {str(error)[:300]}. A tensor is what the "
                "model takes and is not transformed."
            ) from error

    def _table(self, x: Any) -> tuple[Any, Names]:
        """Transform a table whole: its rows are samples.

        Raises:
            InputError: when there are more or fewer afterwards.
        """
        given = x.to_frame().T.infer_objects() if is_series(x) else x
        made = self._run(given)
        made = made.toarray() if hasattr(made, "toarray") else made
        if len(made) != len(given):
            raise InputError(
                f"the transform made {len(made)} samples of {len(given)}; arrays and tables are transformed whole, "
                "with samples along the first axis. Give one picture as a PIL image: Image.fromarray(x)."
            )
        if is_frame(made):
            return made, ()
        names: Names = ()
        if hasattr(self.given, "get_feature_names_out") and hasattr(self.given, "feature_names_in_"):
            names = tuple(map(str, self.given.get_feature_names_out()))
        elif is_frame(given) and np.ndim(made) == 2 and np.shape(made)[1] == given.shape[1]:
            names = tuple(map(str, given.columns))
        if is_frame(given) and isinstance(made, np.ndarray) and made.ndim == 2:
            return type(given)(made, index=given.index, columns=list(names) or None), ()
        return made, names


def is_picture(x: object) -> bool:
    """Return whether this is a picture of PIL, which is not imported."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(x, module.Image)


def are_pictures(x: object) -> bool:
    """Return whether this is a picture of PIL, a picture file, or a list of those."""
    parts = x if isinstance(x, (list, tuple)) and x else [x]
    return all(is_picture(one) or isinstance(one, Path) for one in parts)


def refuse_pictures(x: object) -> None:
    """Refuse a picture where there is no transform.

    Raises:
        InputError: with transforms that there are.
    """
    x = without_label(x)[0]
    parts = x.values() if isinstance(x, Mapping) else x if isinstance(x, (list, tuple)) else [x]
    found = next((one for one in parts if is_picture(one) or isinstance(one, Path)), None)
    if found is not None:
        raise InputError(
            f"{describe_input(found)} needs the transform that the model was trained with: Lens(model, transform=...). "
            "Of torchvision: weights.transforms(); of timm: create_transform(**resolve_model_data_config(model)); of "
            "transformers: AutoImageProcessor.from_pretrained(name); or your own function from a picture to a tensor."
        )


def describe_input(x: Any) -> str:
    """Describe an input in short, pictures by mode and size."""
    if isinstance(x, Path):
        return f"the file {str(x)!r}"
    return f"a picture (PIL, {x.mode}, {x.size[0]} x {x.size[1]})" if is_picture(x) else describe(x)


def without_label(row: Any) -> tuple[Any, Any]:
    """Return the input and the label of a row of a data set, such as `{"image": picture, "label": 3}`.

    A dict of values without tensors and arrays is a row; a single other field is the input itself.
    """
    if not isinstance(row, Mapping) or any(map(_is_data, row.values())) or any(True for _ in named_tensors(row)):
        return row, None
    rest = {name: part for name, part in row.items() if name not in LABELS}
    label = next((row[name] for name in LABELS if name in row), None)
    only = next(iter(rest.values())) if len(rest) == 1 else None
    return (only if isinstance(only, str) or _pictures(only) is not None or _are_texts(only) else rest), label


def _is_data(part: object) -> bool:
    return isinstance(part, np.ndarray) or is_frame(part) or is_series(part)


def _are_texts(part: object) -> bool:
    return isinstance(part, (list, tuple)) and bool(part) and all(isinstance(one, str) for one in part)


def _pictures(x: Any) -> list[Any] | None:
    """The pictures in an input: one or several, also as arrays of bytes with channels last; None where it has none."""
    if is_picture(x):
        return [x]
    if isinstance(x, Path):
        return [need("PIL.Image", "a picture").open(x)]
    if isinstance(x, np.ndarray):
        if x.dtype == np.uint8 and x.ndim in (3, 4) and x.shape[-1] in (3, 4):
            return [need("PIL.Image", "a picture").fromarray(one) for one in (x[None] if x.ndim == 3 else x)]
        return None
    if isinstance(x, Sequence) and not isinstance(x, (str, bytes)) and len(x):
        found = [_pictures(one) for one in x]
        return [one for part in found if part for one in part] if all(part is not None for part in found) else None
    return None


def _stacked(samples: Sequence[Any]) -> Any:
    """Samples as a batch; a picture's sample with four axes, of which the first is 1, is a batch of one already.

    Raises:
        InputError: when they differ in shape, or one is not a tensor.
    """
    first = samples[0]
    if isinstance(first, Mapping):
        return {name: _stacked([one[name] for one in samples]) for name in first}
    if not all(isinstance(one, (torch.Tensor, np.ndarray)) for one in samples):
        raise InputError(f"the transform returned {describe(first)}; it must return a tensor, or a dict of tensors.")
    tensors = [torch.as_tensor(one) for one in samples]
    return stacked([one[0] if one.ndim == 4 and len(one) == 1 else one for one in tensors], "transformed pictures")


def stacked(samples: Iterable[torch.Tensor], what: str) -> torch.Tensor:
    """Return samples as a batch.

    Raises:
        InputError: when they differ in shape.
    """
    listed = list(samples)
    shapes = list(dict.fromkeys(tuple(one.shape) for one in listed))
    if len(shapes) > 1:
        raise InputError(
            f"the {what} differ in shape: {', '.join(map(str, shapes[:3]))}. Bring them to one, such as by Resize and "
            "CenterCrop, or give them one by one."
        )
    return torch.stack(listed)
