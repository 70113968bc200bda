"""Read arrays and pictures, and refuse those that would be drawn wrong."""

from __future__ import annotations

import numpy as np
import torch

from layerlens.errors import PlotError

from ..style import Array


def finite_array(values: object, what: str) -> Array:
    """A numpy copy of a tensor or array of finite numbers; without gradients; bfloat16 becomes float32.

    Args:
        values: a tensor or array.
        what: what it holds, for messages.

    Raises:
        PlotError: for another type, an empty array, complex numbers, NaN or infinity.

    Example:
        >>> finite_array(torch.ones(2, requires_grad=True), "map")
        array([1., 1.], dtype=float32)
    """
    array: Array
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        array = (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
    elif isinstance(values, np.ndarray):
        array = values
    else:
        raise PlotError(f"{what} is a {type(values).__name__}; give a tensor or a numpy array.")
    given = f"{what} ({array.dtype} {array.shape})"
    if array.dtype.kind not in "fiub":
        raise PlotError(f"{given} holds no real numbers. Take .abs() or .real of complex values.")
    if array.size == 0:
        raise PlotError(f"{given} is empty.")
    if array.dtype.kind in "iub":
        return array.astype(np.float64 if array.dtype.itemsize > 2 else np.float32)
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        raise PlotError(
            f"{given} holds NaN or infinity at {bad} of {array.size} places, which no color shows. Find where they "
            "arise (an overflow in half precision?), or replace them: torch.nan_to_num(values)."
        )
    copy: Array = array.copy()
    return copy


def picture(image: object, what: str = "the picture", *, channels_first: bool = False) -> Array:
    """Read one picture for showing: brightness 0..1, `(height, width)` or `(height, width, 3)`.

    Taken are `(height, width)`, `(channel, height, width)` and `(height, width, channel)`, in 0..1, in 0..255, or
    standardized for a model: the last is stretched from its 0.5th to its 99.5th percentile. Alpha is dropped, two
    or more than four channels become their mean.

    Args:
        image: tensor or array.
        what: its name, for errors.
        channels_first: whether the first axis is known to be the channels.

    Raises:
        PlotError: if the shape does not fit a picture, channels could be first or last, or values are not finite.

    Example:
        >>> picture(np.full((3, 4, 5), 255, dtype=np.uint8)).shape
        (4, 5, 3)
    """
    array = finite_array(image, what)
    given = f"{what} has shape {array.shape}"
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3:
        few = (1, 3, 4)
        if not channels_first and array.shape[0] in few and array.shape[2] in few:
            raise PlotError(
                f"{given}: channels could come first or last. Give (height, width) for one channel, or a picture of "
                "more than 4 pixels in height and width."
            )
        if not channels_first and array.shape[2] in few and array.shape[0] not in few:
            channels = array
        else:
            channels = np.moveaxis(array, 0, -1)
        count = channels.shape[-1]
        array = channels[..., :3] if count in (3, 4) else channels.mean(axis=-1)
    elif array.ndim != 2:
        raise PlotError(f"{given}; one picture is (height, width), (channel, height, width) or (height, width, 3).")
    return _brightness(array)


def _brightness(array: Array) -> Array:
    low, high = float(array.min()), float(array.max())
    if low >= 0 and high <= 1:
        return array
    if low >= 0 and high <= 255 and high > 16:
        return array / 255
    low, high = (float(edge) for edge in np.percentile(array, (0.5, 99.5)))
    return np.clip((array - low) / (high - low or 1), 0, 1)


def gray(image: Array) -> Array:
    """Shades of middle gray for an underlay, `(height, width)` in 0.42..0.88: dark colors must show on it.

    Args:
        image: from `picture`.
    """
    luminance = image @ np.array([0.2126, 0.7152, 0.0722]) if image.ndim == 3 else image
    low, high = (float(edge) for edge in np.percentile(luminance, (0.5, 99.5)))
    return 0.42 + 0.46 * np.clip((luminance - low) / (high - low or 1), 0, 1)


def averaged(array: Array, each: int) -> Array:
    """The mean of each block of `each` rows and columns; blocks at the edges may be smaller.

    Args:
        array: `(height, width)` or `(height, width, 3)`.
        each: rows and columns of a block.

    Example:
        >>> averaged(np.arange(6.0).reshape(2, 3), 2)
        array([[2. , 3.5]])
    """
    for axis in (0, 1):
        starts = np.arange(0, array.shape[axis], each)
        counts = np.diff(np.append(starts, array.shape[axis])).reshape(
            [-1 if axis == at else 1 for at in range(array.ndim)]
        )
        array = np.add.reduceat(array, starts, axis=axis) / counts
    return array


def check_channels_first(shape: tuple[int, ...], what: str) -> None:
    """Refuse a batch of pictures that has its channels last.

    Args:
        shape: `(batch, channel, height, width)`, as claimed.
        what: name of the data.

    Raises:
        PlotError: when the last axis looks like the channels.
    """
    if shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4) and shape[1] > 4 and shape[2] > 4:
        raise PlotError(
            f"{what} has shape {shape}, which looks like (batch, height, width, channel). "
            "Give (batch, channel, height, width): values.permute(0, 3, 1, 2), or numpy's transpose(0, 3, 1, 2); "
            "where the first really is the channel, say so with axes=('batch', 'channel', 'height', 'width')."
        )
