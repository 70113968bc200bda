"""The inputs of an explorer and their maps: pictures, series, tokens, tables."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from layerlens.errors import PlotError
from layerlens.model.trees import as_array
from layerlens.plotting.drawing.attribution_sample import UNITS, Sample as Shown, read
from layerlens.plotting.style import Array
from layerlens.results import Attribution

from .packing import CELLS, Numbers, block_size, pooled

TRIES: Final = ((224, 85), (224, 65), (224, 45), (160, 45), (112, 45))
"""Most pixels along an edge of a picture on the page, and the quality of its JPEG: the first that is small enough."""

LOSSLESS: Final = 64
"""Pictures up to this edge are kept as PNG, larger ones as JPEG."""


def names_of(found: Attribution) -> list[str | None]:
    """Return the names of the inputs that have values; None for the only one."""
    return [None] if isinstance(found.values, torch.Tensor) else list(found.values)


def parts_of(
    maps: Sequence[Sequence[Attribution]], budget: float, room: float, numbers: Numbers, notes: list[str]
) -> list[dict[str, Any]]:
    """Return the inputs of one sample, each with its map by method and target.

    Args:
        maps: attributions `[method][target]` of one sample, relevance first.
        budget: most cells of a map.
        room: most bytes of a picture.
        numbers: where arrays go.
        notes: what cannot be shown, which is added to.
    """
    first = maps[0][0]
    parts = []
    for name in names_of(first):
        try:
            shown = [[read(one, 0, name=name, grouped=False) for one in row] for row in maps]
        except PlotError as error:
            volume = _volume(maps, name, budget, numbers)
            if volume is None:
                notes.append(f"An input is not shown: {error}")
            parts += [] if volume is None else [volume]
            continue
        parts.append(_part(first, name, shown, budget, room, numbers))
    return parts


def _volume(
    maps: Sequence[Sequence[Attribution]], name: str | None, budget: float, numbers: Numbers
) -> dict[str, Any] | None:
    """The map of a video or a volume, one slice below the other; None for an input of another form."""
    axes, first = maps[0][0].axes_of(name), maps[0][0]
    given = first.values if name is None else first.values[name]  # type: ignore[index]
    if axes is None or not isinstance(given, torch.Tensor) or len(axes) != given.ndim:
        return None
    summed = tuple(place for place, axis in enumerate(axes[1:]) if axis in UNITS)
    sizes = [size for place, size in enumerate(given.shape[1:]) if place not in summed]
    every = [[one.values if name is None else one.values[name] for one in row] for row in maps]  # type: ignore[index]
    if len(sizes) < 3 or any(one.shape != given.shape for row in every for one in row):  # type: ignore[union-attr]
        return None
    values = np.stack([np.stack([as_array(one[0].detach().double()) for one in row]) for row in every])  # type: ignore[index]
    values = values.sum(axis=tuple(place + 2 for place in summed))
    block = block_size(sizes, min(CELLS, int(budget)))
    places = [axis for place, axis in enumerate(axes[1:]) if place not in summed]
    about = {"name": name or "", "form": "image", "sizes": sizes, "block": block, "axes": places}
    about |= dict.fromkeys(("picture", "tokens", "rows", "values"))
    return {**about, "maps": numbers.add(pooled(values, len(sizes), block))}


def _part(
    found: Attribution, name: str | None, shown: list[list[Shown]], budget: float, room: float, numbers: Numbers
) -> dict[str, Any]:
    one = shown[0][0]
    image = one.form == "image"
    sizes = one.values.shape if image else one.values.shape[-1:]
    most = min(CELLS, int(budget)) if image else max(min(CELLS, int(budget / (one.values.size / sizes[-1]))), 1)
    block = 1 if one.form == "vector" else block_size(sizes, most)
    values = np.stack([np.stack([each.values for each in row]) for row in shown])  # (method, target, *places)
    own = None if image or one.form == "tokens" else _own_values(found, name, one)
    tokens = _tokens(found, name, one) if one.form == "tokens" else None
    return {
        "name": name or "",
        "form": one.form,
        "sizes": [int(size) for size in one.values.shape],
        "block": block,
        "axes": ["height", "width"] if image else list(one.axes),
        "picture": None if one.picture is None else source(one.picture, room),
        "tokens": tokens,
        "rows": None if one.features is None else [str(feature) for feature in one.features],
        "values": None if own is None else numbers.add(own),
        "maps": numbers.add(pooled(values, len(sizes), block)),
    }


def _tokens(found: Attribution, name: str | None, one: Shown) -> list[str]:
    """What the tokens read, or their names, which are numbers where there is no tokenizer."""
    texts = found.texts_of(name)
    if texts is not None and len(texts[0]) == len(one.values):
        names = one.tokens or ()
        return [text or (names[place] if place < len(names) else "") for place, text in enumerate(texts[0])]
    return list(one.tokens or map(str, range(len(one.values))))


def _own_values(found: Attribution, name: str | None, one: Shown) -> Array | None:
    """The input itself, arranged as its map."""
    inputs = found.inputs.get(name or "") if isinstance(found.inputs, dict) else found.inputs
    if not isinstance(inputs, torch.Tensor) or inputs.is_complex():
        return None
    fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(Attribution)}
    given: Any = inputs.detach().float()
    fields |= {"values": given if name is None else {name: given}, "inputs": found.inputs}
    try:
        own = read(Attribution(**fields), 0, name=name, grouped=False).values
    except PlotError:
        return None
    return own if own.shape == one.values.shape else None


def source(picture: Array, room: float) -> str:
    """Return a picture of brightness 0..1 as the source of an `img`, at most 224 pixels wide and high.

    Args:
        picture: `(height, width)` or `(height, width, 3)`.
        room: bytes above which it is made coarser, down to 112 pixels.
    """
    image = Image.fromarray(np.round(np.asarray(picture) * 255).astype(np.uint8))
    if max(image.size) <= LOSSLESS:
        return _encoded(image, "png", optimize=True)
    for edge, quality in TRIES:
        smaller = image.copy()
        smaller.thumbnail((edge, edge))
        text = _encoded(smaller, "jpeg", quality=quality)
        if len(text) <= room:
            break
    return text


def _encoded(image: Image.Image, form: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, form, **options)
    return f"data:image/{form};base64,{base64.b64encode(file.getvalue()).decode()}"
