"""How far each layer is from a linear map of its input, and how little it changes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from layerlens.analyzers.common.features.feature_batches import Source, worth_telling
from layerlens.analyzers.common.messages import listed, warn_left_out
from layerlens.errors import InputError, OptionError, check_count, choose, warn
from layerlens.inputs.batches import Samples
from layerlens.inputs.inputs import Forward, Inputs, as_inputs
from layerlens.model.layers import LayerPath, Layers, Selection
from layerlens.progress import track
from layerlens.results import LayerProfile

from .input_output_pairs import Options, PairReader
from .linear_fit import folds_of, unexplained
from .residual import residual_calls


def nonlinearity(
    model: nn.Module,
    data: Samples,
    layers: Selection = None,
    *,
    rows: Literal["auto", "sample"] = "auto",
    window: int = 3,
    residual: bool | None = None,
    redundant: float = 0.05,
    places: int = 16,
    most: int = 1000,
    widest: int = 1024,
    batch_size: int = 16,
    batched: bool | None = None,
    read: Callable[[Any], Inputs] = as_inputs,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> LayerProfile:
    r"""How much of what each layer returns is no linear map of what it is given; which blocks change next to nothing.

    - nonlinearity: 1 - R^2 of the best linear map (with an offset) from a layer's first floating-point input x to its
      output y, on samples held out: 0 for a linear layer, 1 where x says nothing linearly. The map is a ridge
      regression whose penalty is chosen on the other folds. Where a block returns x + f(x), f(x) is asked for instead
      of y: the stream alone would make any block look linear (Razzhigaev et al. 2024). Such blocks are found in
      autograd's graph.
    - block influence: 1 - cos(x, y), mean over samples and places, of layers with children whose input and output have
      one shape (Men et al. 2024). Blocks below `redundant` change next to nothing, and are named.

    A row is a place of the output (token, step, pixel) with what lies under it in the input: itself, the kernel of a
    convolution or pooling, and for blocks of convolutions a window. What reaches farther, as attention does, counts as
    nonlinear: no one linear map of the place explains it. Where places do not fit each other, or with
    `rows="sample"`, a row is a whole sample.

    With few rows for many features even a linear layer is not told to be one. The null is what a linear layer would
    get: a random linear map of the same rows, fitted in the same way. Read a value by its distance to the null.

    The data is read once. Cost: F for each sample; two runs of the first batch and a run with a graph of one sample
    more; and for each layer five eigenvalue problems in `min(most, features)`.

    Args:
        model: any module; it is run in eval mode.
        data: samples, see `layerlens.inputs.batches`.
        layers: which layers, see `Selection`; None for every layer.
        rows: what a row is, see above.
        window: places of the input, in each direction, that blocks are given of it at most; odd.
        residual: whether the input is taken off the output; None where the graph says that it was added.
        redundant: block influence below which a block is named as redundant.
        places: most places of a sample that are used, chosen at random.
        most: how many rows are kept of each layer.
        widest: features of a row above which random sums of them take their place.
        batch_size: samples that run together.
        batched: whether the items of an iterable are batches; None: those of a DataLoader are.
        read: makes model inputs of a batch, or of one text.
        seed: of all choices, and for models that draw numbers.
        progress: whether to show a bar; None shows it in a terminal.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        A `LayerProfile` of the nonlinearity, with the standard error over the five folds. Its checks are
        `"block influence"` and `"block influence error"`, over samples, `(layers,)`, NaN for layers that are no such
        block, and `"features"` of a row. `settings` names the `"redundant"` blocks, the `"residual"` calls, and what a
        row is in each layer, `"rows"`.

    Raises:
        InputError: when there are fewer than two samples, or no layer has pairs.
        LayerNotFound: when the selection matches no layer.
        OptionError: when an option is out of range.

    Warns:
        UserWarning: when a linear layer of the same size would not be told to be one (null above .05), when an output
            is constant, and for layers left out.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> found = nonlinearity(net, torch.randn(200, 3))
        >>> [round(value, 2) for value in found.values.tolist()]
        [0.0, ...]
    """
    choose("rows", rows, ("auto", "sample"))
    for name, value in (("window", window), ("places", places), ("most", most), ("widest", widest)):
        check_count(name, value)
    if window % 2 == 0:
        raise OptionError(f"window must be odd, so that it has a middle, got {window}.")
    options = Options(rows == "sample", window, places, most, widest, seed)
    source = Source(data, batch_size, batched, read, progress, "reading layers")
    selected: list[LayerPath] = list(Layers(model).select(layers))
    reader: PairReader | None = None
    count = 0
    for batch in source.batches(model):
        if reader is None:
            blocks = residual_calls(model, batch.inputs, forward, seed) if residual is None else set[str]()
            reader = PairReader(model, selected, blocks, forward, options, always=bool(residual))
        reader.read(batch.inputs, seed + count)
        count += batch.inputs.batch
    if count < 2:
        raise InputError("nonlinearity: one sample leaves none to hold out; give two or more.")
    found = {} if reader is None else reader.pairs
    left_out = {} if reader is None else _left_out(reader)
    if not found or reader is None:
        raise InputError(
            f"no layer has an input and an output. {'; '.join(f'{k}: {v}' for k, v in list(left_out.items())[:5])}"
        )
    values, errors, nulls, influences = [], [], [], []
    for pairs in track(found.values(), "fitting lines", enabled=progress):
        x, y, twin, samples, _ = pairs.rows()
        own, chance = unexplained(x, [y, twin], folds_of(samples, seed))
        influence = torch.cat(pairs.influence) if pairs.influence else torch.full((2,), torch.nan, dtype=torch.float64)
        values.append(float(own.mean()))
        errors.append(_error(own))
        nulls.append(float(chance.mean()))
        influences.append([float(influence.mean()), _error(influence)])
    names = tuple(found)
    table, null, turned = (torch.tensor(part, dtype=torch.float64) for part in (values, nulls, influences))
    slight = [name for name, (influence, _) in zip(names, influences, strict=True) if influence < redundant]
    _warn(names, table, null, left_out, layers is not None)
    return LayerProfile(
        quantity="nonlinearity",
        layers=names,
        values=table,
        units="1",
        signed=False,
        method=f"ridge regression, held out, {count} samples",
        settings={
            "window": window,
            "places": places,
            "most": most,
            "widest": widest,
            "seed": seed,
            "residual": [name for name in names if reader.takes_off(name)],
            "redundant": slight,
            "rows": {name: pairs.how for name, pairs in found.items()},
            "left_out": left_out,
        },
        error=torch.tensor(errors, dtype=torch.float64),
        null=null,
        checks={
            "block influence": turned[:, 0],
            "block influence error": turned[:, 1],
            "features": torch.tensor([pairs.features for pairs in found.values()]),
        },
        explanation=(
            "Each value is the share of what a layer returns, or adds to its stream, that no linear map of its input "
            "explains on samples held out"
            + (f"; next to nothing is changed by {', '.join(slight[:3])}." if slight else "."),
            "A value at its null is what a linear layer gets with these rows, and what a layer takes from other "
            "places counts as nonlinear; a block that changes little may still matter to the output.",
        ),
    )


def _left_out(reader: PairReader) -> dict[str, str]:
    ran = {name.split(" #")[0] for name in (*reader.pairs, *reader.left_out)}
    silent = {path: "did not run" for path in reader.layers if path not in ran}
    # what hands on its input does nothing, and is no loss
    return {k: v for k, v in reader.left_out.items() if v != "it hands on its input"} | silent


def _error(parts: torch.Tensor) -> float:
    return float(parts.std()) / len(parts) ** 0.5 if len(parts) > 1 else float("nan")


def _warn(
    names: tuple[str, ...], values: torch.Tensor, null: torch.Tensor, left_out: dict[str, str], explicit: bool
) -> None:
    """Say what would mislead."""
    warn_left_out("nonlinearity", worth_telling(left_out, explicit), explicit)
    if blurred := [name for name, floor in zip(names, null.tolist(), strict=True) if floor > 0.05]:
        worst = float(null.nan_to_num().max())
        warn(
            f"nonlinearity: too few rows for the features of {listed(blurred)}: a linear layer would get up to "
            f"{worst:.2f} (the null). Give more samples, or raise most=.",
        )
    if flat := [name for name, value in zip(names, values.tolist(), strict=True) if value != value]:
        warn(f"nonlinearity: what {listed(flat)} adds is constant: NaN.")
