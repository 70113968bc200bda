"""One sample of an attribution, read for drawing: what form it has and which numbers are shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final, Literal, NoReturn

import numpy as np
import torch

from layerlens.errors import OptionError, PlotError, choose
from layerlens.results import Attribution
from layerlens.results.maps.token_spans import character_groups, marked_texts

from ..style import Array
from ..words import words
from . import images
from .intervals import unsettled

UNITS: Final = ("channel", "feature", "unit")
"""Names of axes without places."""

Form = Literal["image", "series", "tokens", "vector"]
Channel = Literal["sum", "abs"] | int
Which = int | str | Sequence[int | str] | None
"""A sample by number or name, several, or the first that fit a page; a figure of one sample is given its number."""

FORMS: dict[tuple[str, ...], Form] = {
    ("channel", "height", "width"): "image",
    ("height", "width"): "image",
    ("time", "feature"): "series",
    ("token", "feature"): "series",
    ("channel", "length"): "series",
    ("channel", "time"): "series",
    ("token",): "tokens",
    ("word",): "tokens",
    ("span",): "tokens",
    ("feature",): "vector",
}


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sample of an attribution.

    Attributes:
        form: how it is drawn.
        values: `(height, width)` of an image, `(row, time)` of a series, `(token,)` or `(feature,)`.
        signed: whether negative values have a meaning.
        units: what a value is, with how channels were joined.
        what: name for errors.
        title: method and target.
        score: what the model said.
        picture: the input as a picture, `(height, width)` or `(height, width, 3)`; None where there is none.
        tokens: the text of each token; those that make up a character are one.
        axes: names of the rows and columns of `values`, for a series.
        as_read: whether `tokens` are parts of the text with its spaces, not the tokenizer's names.
        parts: name and first token of each input, where tokens of several follow each other.
        features: names of the values of a vector, or of the rows of a series, where they are known.
        widths: how far the interval of each value reaches below and above it, `(*values.shape, 2)`; of a sum at most,
            as errors add up where draws are shared. None where there is no error.
    """

    form: Form
    values: Array
    signed: bool
    units: str
    what: str
    title: str
    score: float
    picture: Array | None = None
    tokens: tuple[str, ...] | None = None
    axes: tuple[str, str] = ("", "")
    as_read: bool = False
    parts: tuple[tuple[str, int], ...] = ()
    features: tuple[str, ...] | None = None
    widths: Array | None = None

    @property
    def unsettled(self) -> Array | None:
        """Which values have an interval that includes 0, or an unknown one; None where there is no error."""
        return unsettled(self.values, self.widths)


def read(
    attribution: Attribution,
    sample: Which,
    *,
    channel: Channel = "sum",
    name: str | None = None,
    grouped: bool = True,
    interval: float | None = None,
) -> Sample:
    """Take one sample out of an attribution.

    Args:
        attribution: the result.
        sample: which of the batch; negative counts from the end.
        channel: how the channels of an image become one number: their sum, the sum of their absolute values, or
            one of them.
        name: which input, where there are several.
        grouped: whether tokens that make up a character become one, with their sum.
        interval: share of the intervals that are read with the values; None reads none.

    Raises:
        OptionError: for an unknown name or channel, or a share that is not between 0 and 1.
        PlotError: when the values cannot be drawn.
    """
    if not isinstance(attribution, Attribution):
        raise PlotError(f"this figure draws an Attribution, not a {type(attribution).__name__}.")
    values, inputs = _values_of_input(attribution, name)
    what = f"the {attribution.method} attribution"
    if values.ndim == 0 or values.ndim == 1:
        raise PlotError(f"{what} has shape {tuple(values.shape)}; a figure needs (batch, ...) with places to show.")
    sample = sample_index(sample, len(values), what)
    form, axes = _form_and_axes(attribution, name, values, inputs, what)
    array = images.finite_array(values[sample], f"{what} of sample {sample}")
    units, signed = attribution.units, attribution.signed
    widths = interval_widths(attribution, name, interval)
    widths = None if widths is None else widths[sample]
    shown, tokens, as_read = None, None, False
    if form == "image":
        if array.ndim == 3:
            if widths is not None:  # of sizes no interval is known
                widths = None if channel == "abs" else widths[channel] if channel != "sum" else widths.sum(axis=0)
            array, signed, units = _joined_channels(array, channel, signed, units, what)
        shown = _input_picture(inputs, sample, array.shape, what)
    elif form == "tokens":
        tokens = _token_texts(attribution, name, inputs, sample, len(array), what)
        if "summed over" in attribution.settings:  # after the last word of a sample come empty ones
            count = max((place for place, word in enumerate(tokens, 1) if word), default=len(tokens))
            array, tokens = array[:count], tokens[:count]
            widths = None if widths is None else widths[:count]
        else:
            texts, used = attribution.texts_of(name), attribution.used_of(name)
            read = None if texts is None else list(texts[sample])
            if used is not None:  # padding is left out
                kept = used[sample].nonzero().flatten().tolist()
                array, tokens = array[kept], tuple(tokens[place] for place in kept)
                widths = None if widths is None else widths[kept]
                read = None if read is None else [read[place] for place in kept]
            if grouped:
                array, widths, tokens, as_read = _characters(array, widths, tokens, read)
    elif form == "series" and axes[-1] == "feature":
        array, axes = array.T, axes[::-1]
        widths = None if widths is None else widths.swapaxes(0, 1)
    names = attribution.features_of(name)
    return Sample(
        form=form,
        values=array,
        signed=signed,
        units=units,
        what=what,
        title=", ".join(part for part in (words(attribution.how), attribution.target_of(sample)) if part),
        score=float(attribution.score[sample]),
        picture=shown,
        tokens=tokens,
        axes=(axes[0], axes[1]) if form == "series" else ("", ""),
        as_read=as_read,
        features=names if form in ("vector", "series") and len(names) == len(array) else None,
        widths=widths,
    )


def read_texts(
    attribution: Attribution,
    sample: Which,
    name: str | None = None,
    *,
    grouped: bool = True,
    interval: float | None = None,
) -> Sample:
    """Take the tokens of one sample out of an attribution; without a name those of all inputs, one after the other.

    Args:
        attribution: the result.
        sample: which of the batch; negative counts from the end.
        name: which input, where there are several.
        grouped: whether tokens that make up a character become one, with their sum.
        interval: share of the intervals that are read with the values; None reads none.

    Raises:
        OptionError: for an unknown name, or a share that is not between 0 and 1.
        PlotError: when the values cannot be drawn.
    """
    if name is not None or not isinstance(attribution, Attribution) or not isinstance(attribution.values, dict):
        return read(attribution, sample, name=name, grouped=grouped, interval=interval)
    found = [
        (one, read(attribution, sample, name=one, grouped=grouped, interval=interval))
        for one in text_inputs(attribution)
    ]
    if not found:
        return read(attribution, sample)  # which says what to choose from
    first = found[0][1]
    widths = [one.widths for _, one in found if one.widths is not None]
    starts = np.cumsum([0, *(len(one.values) for _, one in found)]).tolist()
    return dataclasses.replace(
        first,
        values=np.concatenate([one.values for _, one in found]),
        widths=np.concatenate(widths) if len(widths) == len(found) else None,
        tokens=tuple(token for _, one in found for token in one.tokens or ()),
        as_read=all(one.as_read for _, one in found),
        parts=tuple((one, start) for (one, _), start in zip(found, starts, strict=False)),
    )


def text_inputs(attribution: Attribution) -> list[str]:
    """The inputs of an attribution of several that are tokens."""
    values = attribution.values if isinstance(attribution.values, dict) else {}
    inputs = attribution.inputs if isinstance(attribution.inputs, dict) else {}
    return [
        name for name, one in values.items()
        if one.ndim == 2 and (attribution.tokens_of(name) is not None or _are_ids(inputs.get(name)))
    ]  # fmt: skip


def _are_ids(inputs: torch.Tensor | None) -> bool:
    return inputs is not None and not inputs.is_floating_point() and inputs.dtype != torch.bool


def _characters(
    values: Array, widths: Array | None, tokens: tuple[str, ...], texts: list[str] | None
) -> tuple[Array, Array | None, tuple[str, ...], bool]:
    """Values and texts with the tokens that make up a character as one, and whether these are parts of the text."""
    read = marked_texts(tokens) if texts is None else texts
    if texts is None and all(text or not token for text, token in zip(read, tokens, strict=True)):
        return values, widths, tokens, False
    groups = character_groups(read)
    return (
        np.array([values[start:stop].sum() for start, stop in groups], dtype=values.dtype),
        None if widths is None else np.array([widths[start:stop].sum(axis=0) for start, stop in groups]),
        tuple("".join(read[start:stop]) for start, stop in groups),
        True,
    )


def sample_index(sample: Which, size: int, what: str) -> int:
    """The index of a sample, counted from the start.

    Raises:
        OptionError: when there is no such sample.
    """
    if isinstance(sample, bool) or not isinstance(sample, (int, np.integer)) or not -size <= sample < size:
        raise OptionError(f"sample={sample!r}, but {what} holds {size} (0 to {size - 1}).")
    return int(sample) % size


def interval_widths(attribution: Attribution, name: str | None, interval: float | None) -> Array | None:
    """How far the interval of each value of an input reaches below and above it, `(*values.shape, 2)`.

    Returns:
        None where there is no error, or no share is given.

    Raises:
        OptionError: when the share is not between 0 and 1.
    """
    if interval is None or not attribution.has_interval:
        return None
    known = {"": attribution.values} if isinstance(attribution.values, torch.Tensor) else attribution.values
    chosen = name if name in known else next(iter(known))
    low, high = (one if isinstance(one, torch.Tensor) else one[chosen] for one in attribution.interval(interval))
    ends = torch.stack([known[chosen] - low, high - known[chosen]], dim=-1)
    return np.asarray(ends.detach().double().cpu())


def _values_of_input(attribution: Attribution, name: str | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    values, inputs = attribution.values, attribution.inputs
    if isinstance(values, torch.Tensor):
        if name is not None:
            raise OptionError(
                f"name={name!r}, but the {attribution.method} attribution is of one input without a name."
            )
    else:
        names = ", ".join(map(repr, values))
        if name is None:
            raise PlotError(
                f"the {attribution.method} attribution holds values for {len(values)} inputs: {names}. "
                f"Say which to draw: name={next(iter(values))!r}."
            )
        values = values[choose("input name", name, values)]
    if isinstance(inputs, dict):
        inputs = inputs.get(name) if name is not None else None
    return values, inputs


def _form_and_axes(
    attribution: Attribution, name: str | None, values: torch.Tensor, inputs: torch.Tensor | None, what: str
) -> tuple[Form, tuple[str, ...]]:
    shape = tuple(values.shape)
    axes = attribution.axes_of(name)
    if axes is not None and len(axes) == len(shape):
        if axes[1:] in FORMS:
            return FORMS[axes[1:]], axes[1:]
        places = tuple(axis for axis in axes[1:] if axis not in UNITS)
        if len(places) > 2:
            _refuse_volume(values, axes, what, name)
        if len(places) == 2 and axes[-2:] == places:
            return "image", axes[1:]
    if len(shape) == 2:
        known = attribution.tokens_of(name) is not None or _are_ids(inputs)
        return ("tokens", ("token",)) if known else ("vector", ("feature",))
    if len(shape) == 3:
        steps = inputs is not None and inputs.ndim == 3
        return ("series", ("time", "feature")) if steps else ("image", ("height", "width"))
    if len(shape) == 4:
        images.check_channels_first(shape, what)
        return "image", ("channel", "height", "width")
    _refuse_volume(values, axes, what, name)


def _refuse_volume(values: torch.Tensor, axes: tuple[str, ...] | None, what: str, name: str | None) -> NoReturn:
    """Refuse values with more than two axes of places; say how to draw the slice that holds most.

    Raises:
        PlotError: always.
    """
    one = "result.values" if name is None else f"result.values[{name!r}]"
    call = slice_call("result", one, values, axes if axes is not None and len(axes) == values.ndim else None)
    known = f" with axes {axes}" if axes else ""
    raise PlotError(
        f"{what} has shape {tuple(values.shape)}{known}; a figure shows (batch, channel, height, width), (batch, "
        "height, width), (batch, time, feature), (batch, token) or (batch, feature). Take a slice of a volume or "
        f"video, such as the one that holds most: {call}."
    )


def slice_call(result: str, one: str, values: torch.Tensor, axes: tuple[str, ...] | None) -> str:
    """Return the call that takes the slice of a volume that holds most, along its first axis of places.

    Args:
        result: name of the result.
        one: name of its values.
        values: these values, `(batch, ...)`.
        axes: names of their axes, where known.
    """
    first = next((at for at, axis in enumerate(axes or ()) if at and axis not in UNITS), min(2, values.ndim - 1))
    rest = [axis for axis in range(1, values.ndim) if axis != first]
    best = int(values.detach().abs().double().sum(dim=(0, *rest)).argmax())
    left = None if axes is None else (*axes[:first], *axes[first + 1 :])
    index = ", ".join([*[":"] * first, str(best)])
    return f"dataclasses.replace({result}, values={one}[{index}], axes={left}, inputs=None)"


def _joined_channels(array: Array, channel: Channel, signed: bool, units: str, what: str) -> tuple[Array, bool, str]:
    count = len(array)
    if isinstance(channel, (int, np.integer)) and not isinstance(channel, bool):
        if not -count <= channel < count:
            raise OptionError(f"channel={channel}, but {what} holds {count} channels (0 to {count - 1}).")
        return array[channel], signed, f"{units}, channel {channel % count}"
    choose("channel", channel, ("sum", "abs"))
    if channel == "abs":
        return np.abs(array).sum(axis=0), False, f"|{units}|" if count == 1 else f"|{units}|, sum of channels"
    return array.sum(axis=0), signed, units if count == 1 else f"{units}, sum of channels"


def _input_picture(inputs: torch.Tensor | None, sample: int, size: tuple[int, ...], what: str) -> Array | None:
    if inputs is None or inputs.ndim not in (3, 4):
        return None
    if tuple(inputs.shape[-2:]) != size:
        raise PlotError(
            f"{what} is {size[0]} x {size[1]}, but its input has shape {tuple(inputs.shape)}. Resize the map to the "
            "input (torch.nn.functional.interpolate), or keep no input: dataclasses.replace(result, inputs=None)."
        )
    return images.picture(inputs[sample], "the input", channels_first=inputs.ndim == 4)


def _token_texts(
    attribution: Attribution, name: str | None, inputs: torch.Tensor | None, sample: int, count: int, what: str
) -> tuple[str, ...]:
    known = attribution.tokens_of(name)
    if known is not None:
        tokens = tuple(known[sample])
        if len(tokens) != count:
            raise PlotError(f"{what} of sample {sample} has {count} values for {len(tokens)} tokens; they must agree.")
        return tokens
    if inputs is not None and inputs.ndim == 2 and inputs.shape[1] == count:
        return tuple(str(token) for token in inputs[sample].tolist())
    return tuple(str(index) for index in range(count))
