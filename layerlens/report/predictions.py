"""What the model said of a sample: its largest outputs, by name."""

from __future__ import annotations

import torch

from layerlens.targets.target import main_output
from layerlens.wrapped_model import WrappedModel

from .samples import Sample

MOST = 5


def largest(lens: WrappedModel, sample: Sample) -> tuple[tuple[str, str, str], ...]:
    """The largest outputs of one sample: name, value, and the softmax share where outputs are classes or tokens.

    Of an output `(1, classes)`, or of the last position of `(1, position, vocabulary)` where there is a tokenizer;
    nothing for any other.
    """
    values = main_output(sample.output).detach()
    words = lens.tokenizer is not None and values.ndim == 3 and lens.class_names is None
    if words:
        values = values[:, -1]
    if values.ndim != 2 or values.shape[1] < 2 or values.is_complex():
        return ()
    row = values[0].double().cpu()
    shares = torch.softmax(row, dim=0) if words or lens.class_names is not None else None
    if shares is not None and bool((row >= 0).all()) and abs(float(row.sum()) - 1) < 1e-3:
        shares = row  # the model returns shares itself
    best = row.topk(min(MOST, len(row)))
    return tuple(
        (
            lens.target(index, sample.inputs).label,
            f"{value:.4g}",
            "" if shares is None else f"{float(shares[index]):.1%}",
        )
        for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    )
