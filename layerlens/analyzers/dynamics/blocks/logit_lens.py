"""What a model would say if each layer were its last: every layer's stream, read by the model's own head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from layerlens.analyzers.common.calls.fastpath import layers_called
from layerlens.analyzers.common.messages import warn_left_out
from layerlens.errors import OptionError, TargetError, check_count, choose, warn
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import LogitLens
from layerlens.targets.target import Names

from .block_stack import Stream
from .output_head import CLOSE, HeadReader

VALUES = {"probability": "1", "logit": "score", "rank": "1 is the likeliest"}


def logit_lens(
    model: nn.Module,
    x: Input,
    layers: Selection = None,
    *,
    head: Callable[[torch.Tensor], torch.Tensor] | None = None,
    target: int | Sequence[int] | torch.Tensor | None = None,
    value: Literal["probability", "logit", "rank"] = "probability",
    top: int = 5,
    names: Names = None,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> LogitLens:
    r"""What the model would answer if the stream of each layer were that of its last block.

    The stream h_l behind block l is put in the place of the last block's, and the model goes on from there with its own
    code: p_l = softmax(W norm(h_l)) in a language model (nostalgebraist 2020, "interpreting GPT: the logit lens"), the
    pooling and head of a classifier. So the last row is the model's answer itself. For a language model there is an
    answer at each position.

    Cost: 7 F (find the blocks, find the batch axis on a doubled batch, keep the streams, try the head, read all streams
    at once), and a head for each layer. Where the model needs its input behind the last block as well, the last run is
    one on L copies of the batch, L the layers.

    Args:
        model: any module with at least two layers that return tensors of one shape; it is run in eval mode.
        x: its input, `(batch, ...)`: a tensor, a tuple of arguments, or a dict of keyword arguments.
        layers: which layers to read, see `Selection`; the last of them to run is where the model goes on. None takes
            the list of blocks that the model is mostly made of (`model.layers.*`), and what went into the first.
        head: from the stream to scores `(batch, classes)` or `(batch, positions, classes)`, in place of the model's own
            code behind the last layer.
        target: the class, or token id, to watch: one for all, or one for each column; None takes the model's answer at
            each.
        value: its probability, its logit, or its rank.
        top: how many of the likeliest classes to keep for each layer and position.
        names: of the classes.
        seed: for models that draw numbers.
        progress: whether to show a bar; None when stderr is a terminal and it takes long.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        `LogitLens`: layer x position (of all samples, one after another), or layer x sample. The null is the same
        number for the same target at all other columns, mean: what a layer says whatever the position. Its checks are
        `"kl"`, the divergence KL(p_last || p_l) in nats, `(rows, columns)`, and `"own output"`, the largest difference
        of the last row, as computed by the lens, from the model's own, relative to its size.

    Raises:
        LayerNotFound: when no layers fit.
        OptionError: when an option does not fit the output.
        TargetError: when the output holds no scores, or the target is no class.

    Warns:
        UserWarning: when the last layer read in this way differs from the model's own output, and for layers whose
            shape does not fit.

    Example:
        >>> net = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)], nn.Linear(4, 5))
        >>> found = logit_lens(net, torch.ones(2, 4), ["0", "1", "2"])
        >>> found.rows, found.columns
        (('input of 0', '0', '1', '2'), ('sample 0', 'sample 1'))
        >>> bool(torch.allclose(found.values[-1].float(), net(torch.ones(2, 4)).softmax(1).max(1).values))
        True
    """
    choose("value", value, VALUES)
    check_count("top", top)
    with borrowed(model, grad=False), layers_called():
        stream = Stream.read(model, as_inputs(x), layers, forward, seed)
        read = HeadReader(stream, head)
        own = _log_p(read.own)
        batch, columns, classes = stream.inputs.batch, own.shape[0], own.shape[1]
        if classes < 2:
            raise OptionError(f"the output {tuple(read.own.shape)} has one class; a lens compares several.")
        watched = _targets(target, own, batch)
        values, tops, scores, kl, null = [], [], [], [], []
        for logits in track(read.rows(), "logit lens", total=len(stream.names), enabled=progress):
            log_p = _log_p(logits)
            likeliest = log_p.topk(min(top, classes), dim=1)
            tops.append(likeliest.indices)
            scores.append(likeliest.values.exp())
            kl.append(torch.where(own.isneginf(), 0.0, own.exp() * (own - log_p)).sum(dim=1).clamp_min(0))
            number = _number(_columns(logits).double().cpu(), log_p, watched, value)  # (columns, targets)
            values.append(number.diagonal())
            null.append((number.sum(dim=0) - number.diagonal()) / max(columns - 1, 1))
    _warn(read, stream, layers is not None)
    places = columns // batch
    labels = [f"sample {k}" for k in range(batch)] if read.own.ndim == 2 else [
        f"{place}" if batch == 1 else f"sample {k}, {place}" for k in range(batch) for place in range(places)
    ]  # fmt: skip
    ids = torch.stack(tops)
    return LogitLens(
        quantity=f"{value} of the target",
        rows=tuple(stream.names),
        columns=tuple(labels),
        values=torch.stack(values),
        axes=("layer", "sample" if read.own.ndim == 2 else "position"),
        units=VALUES[value],
        signed=value == "logit",
        method=f"logit lens, {read.how}",
        settings={
            "value": value,
            "target": target if isinstance(target, int) else "the model's answer" if target is None else "given",
            "top": top,
            "seed": seed,
            "left_out": stream.left_out,
        },
        null=torch.stack(null) if columns > 1 else None,
        checks={"kl": torch.stack(kl), "own output": torch.tensor(read.difference, dtype=torch.float64)},
        explanation=(
            f"Each value is the {value} of the target when the stream of that layer is read by what stands behind the "
            "last one.",
            "Early layers need not speak the last layer's language: that a target is not read there does not say that "
            "it is not known yet, and a value at its null is said at other positions as well.",
        ),
        targets=tuple(watched.tolist()),
        top=ids,
        scores=torch.stack(scores),
        names=_names(names, [*set(ids.flatten().tolist()), *watched.tolist()]),
    )


def _columns(scores: torch.Tensor) -> torch.Tensor:
    """`(columns, classes)`."""
    return scores.reshape(-1, scores.shape[-1])


def _log_p(scores: torch.Tensor) -> torch.Tensor:
    """Log-probabilities `(columns, classes)`, float64; of a distribution its logarithms."""
    rows = _columns(scores).double().cpu()
    if bool((rows >= 0).all()) and bool(((rows.sum(dim=1) - 1).abs() < 1e-3).all()):
        return rows.log()
    return rows.log_softmax(dim=1)


def _number(scores: torch.Tensor, log_p: torch.Tensor, watched: torch.Tensor, value: str) -> torch.Tensor:
    """At each column the number of each column's target, `(columns, columns)`."""
    if value == "logit":
        return scores[:, watched]
    if value == "probability":
        return log_p[:, watched].exp()
    return torch.stack([(log_p > log_p[:, [k]]).sum(dim=1) + 1.0 for k in watched.tolist()], dim=1).double()


def _targets(target: Any, own: torch.Tensor, batch: int) -> torch.Tensor:
    columns, classes = own.shape
    if target is None:
        return own.argmax(dim=1)
    try:
        given = torch.as_tensor(target).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TargetError(f"a lens watches class indices, one or one per column; got {target!r}.") from error
    if given.is_floating_point() or given.dtype == torch.bool:
        raise TargetError(f"a lens watches class indices, one or one per column; got {target!r}.")
    given = given.flatten().long()
    if len(given) == batch != columns:
        given = given.repeat_interleave(columns // batch)
    if len(given) not in (1, columns):
        raise TargetError(f"{len(given)} targets for {columns} columns; give one, one per sample, or one per column.")
    if bool(((given < -classes) | (given >= classes)).any()):
        raise TargetError(f"targets must be classes 0 to {classes - 1}, got {given.tolist()}.")
    return (given % classes).expand(columns)


def _names(names: Names, ids: list[int]) -> dict[int, str]:
    if names is None:
        return {}
    if isinstance(names, Mapping):
        known = {index: names.get(index) for index in ids}
        return {index: name for index, name in known.items() if name is not None}
    return {index: names[index] for index in ids if index < len(names)}


def _warn(read: HeadReader, stream: Stream, explicit: bool) -> None:
    warn_left_out("logit_lens", stream.left_out, explicit)
    if not read.difference < CLOSE:
        warn(
            "logit_lens: the last layer, read in this way, does not give the model's own output "
            f"(relative difference {read.difference:.2g}); is the head complete, with its norm?",
        )
