"""Which axis of a series is time: the one that the layers of the model do not read as channels or features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

CHANNELS_FIRST = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d)
WIDTHS = ("in_channels", "input_size", "in_features", "num_features", "embed_dim")


def time_axis(modules: Iterable[nn.Module], shape: Sequence[int]) -> int | None:
    """Return the time axis of a series `(batch, channel, time)` or `(batch, time, feature)`; None if no layer says.

    The first layer that reads as many channels or features as one of the two axes has entries says which it is. A
    linear layer reads the last axis; the others may follow a transposition.

    Args:
        modules: the layers, in the order of their calls, or of the model.
        shape: shape of the series, with its batch.
    """
    for module in modules:
        first = isinstance(module, CHANNELS_FIRST)
        width = next((size for name in WIDTHS if isinstance(size := getattr(module, name, None), int)), None)
        if width is None or width not in shape[1:]:
            continue
        if shape[1] == shape[2]:
            return 2 if first else 1
        if isinstance(module, nn.Linear) and shape[2] != width:
            continue
        return 1 if shape[2] == width else 2
    return None
