"""Names of the axes of the input: what the model does with an axis shows what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from layerlens.errors import InputError

from .axis import Axes, Axis, Part, Source, new

SPACE = {1: ("time",), 2: ("height", "width"), 3: ("depth", "height", "width")}
"""Names of places by the number of axes that a window spans."""

UNITS = ("channel", "feature", "unit")
"""Names of axes that hold units."""


def name_sources(
    given: Mapping[str, Axes], tensors: Mapping[str, torch.Tensor], names: Mapping[str, Sequence[str]]
) -> None:
    """Name the sources of input tensors.

    Raises:
        InputError: when a name is given for a tensor that does not exist, or their number is wrong.
    """
    for name, wanted in names.items():
        if name not in given:
            raise InputError(f"axes names the input {name!r}; the inputs are {', '.join(map(repr, given))}.")
        if len(wanted) != len(given[name]):
            shape = tuple(tensors[name].shape)
            raise InputError(f"axes[{name!r}] has {len(wanted)} names for a tensor of shape {shape}.")
        for axis, text in zip(given[name], wanted, strict=True):
            for part in axis.parts():
                part.source.name = text
    sources = {name: [part.source for axis in axes for part in axis.parts()] for name, axes in given.items()}
    met = {id(source): source for series in sources.values() for source in series}
    _find_batch(sources)
    for series in sources.values():
        _by_roles(series)
    for series in sources.values():  # a mask has the names of what it masks
        for source in series:
            for role in source.roles:
                other = met.get(int(role.split()[1])) if role.startswith("meets") else None
                if other is not None and not source.name and other.name:
                    source.name = other.name
    for name, series in sources.items():
        _by_convention(series, tensors[name])
    for source in met.values():
        places = any(role.startswith("window") or role in ("stepped", "looked up") for role in source.roles)
        if source.name == "batch":
            source.role = "batch"
        elif source.name in UNITS or ("contracted" in source.roles and not places):
            source.role = "unit"


def _find_batch(inputs: Mapping[str, list[Source]]) -> None:
    """Find out whether the model steps along the first axis, or attends along it: then samples lie along the second.

    Where the second is the last, and summed over, there are no samples.
    """
    first = next((series[0] for series in inputs.values() if series and series[0].name == "batch"), None)
    if first is None or not {"stepped", "attended"} & set(first.roles):
        return
    second = [series[1] for series in inputs.values() if len(series) > 1 and not series[1].name]
    if second and all(role.startswith("meets") for source in second for role in source.roles):
        first.name, first.role, first.origin = "", "place", (next(iter(inputs)), 0)
        for source in second:
            source.name = "batch"
    elif all(len(series) == 2 and "contracted" in series[1].roles for series in inputs.values()):
        first.name, first.role, first.origin = "time", "place", (next(iter(inputs)), 0)


def _by_roles(sources: list[Source]) -> None:
    for source in sources:
        windows = [role for role in source.roles if role.startswith("window ")]
        if source.name:
            continue
        if "looked up" in source.roles:
            source.name = "token"
        elif windows:
            place, count = int(windows[0].split()[1]), int(windows[0].split()[3])
            source.name = SPACE[count][place] if count in SPACE else ""
        elif "stepped" in source.roles:
            source.name = "time"
    taken = {source.name for source in sources}
    picture = len(sources) > 3 or bool(taken & {"height", "width", "depth"})
    for source in sources:
        if not source.name and "contracted" in source.roles:
            stepped = any("stepped" in other.roles for other in sources)
            source.name = "channel" if picture or ("time" in taken and not stepped) else "feature"
        elif not source.name and len(sources) == 5 and {"height", "width"} <= taken:
            source.name = "time"


def _by_convention(sources: list[Source], tensor: torch.Tensor) -> None:
    """Name what no layer shows as torch's own layers do: a picture is (batch, channel, height, width).

    Of a series time is then the longer axis. What contradicts the convention elsewhere leaves the rest without names.
    """
    free = [source for source in sources if not source.name]
    taken = {source.name for source in sources}
    if not free:
        return
    floating, nothing = tensor.is_floating_point(), not taken - {"", "batch"}
    channels_first = nothing and tensor.ndim == 3 and tensor.shape[2] >= tensor.shape[1]
    conventions: dict[int, tuple[str, ...]] = {
        2: ("batch", "feature" if floating else "token"),
        3: ("batch", "channel", "time") if channels_first else ("batch", "time", "feature"),
        4: ("batch", "channel", "height", "width"),
        5: ("batch", "channel", "depth", "height", "width"),
    }
    usual = conventions.get(len(sources), ())
    left = [name for name in usual if name not in taken]
    placed = [(source, name) for source, name in zip(sources, usual, strict=False) if not source.name]
    if nothing or (len(left) == len(free) and (len(free) == 1 or [name for _, name in placed] == left)):
        for source, name in zip(free, left, strict=False):
            source.name, source.assumed = name, nothing
    for place, source in enumerate(sources):
        if not source.name:
            source.name = f"axis {place}"


def named_axis(
    name: str, size: int, batch: Source, given: Mapping[str, Axes], places: Mapping[str, tuple[str, int]]
) -> Axis:
    """Return the axis that a user named: one of the input if it has this name, evenly spread over it."""
    if name == "batch":
        return Axis((Part(batch, size),))
    if name in UNITS:
        return new("unit", size)
    if name not in places:
        return Axis((Part(Source("input", size, name), size),))
    origin = places[name]
    part = given[origin[0]][origin[1]].part
    assert part is not None
    stride = part.size / size
    return Axis((Part(part.source, size, stride, (stride - 1) / 2),))


def input_axes(name: str, tensor: torch.Tensor, batch: Source, samples: int | None) -> Axes:
    """Return the axes of an input; the first one counts samples if it has as many entries."""
    axes: list[Axis] = []
    for place, size in enumerate(tensor.shape):
        if place == 0 and samples is not None and (size == samples or tensor.is_floating_point()):
            batch.size = max(batch.size, size)
            axes.append(Axis((Part(batch, size),)))
        else:
            axes.append(Axis((Part(Source("input", size, origin=(name, place)), size),)))
    return tuple(axes)
