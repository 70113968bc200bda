"""What a model would predict if each layer were its last: every layer's stream, read by the model's own head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import nn

from layerlens.analyzers.common.calls.measured_calls import MEMORY
from layerlens.analyzers.common.messages import warn_left_out
from layerlens.errors import OptionError, TargetError, check_count, choose, warn
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.fastpath import layers_called
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import LogitLens
from layerlens.signatures import public
from layerlens.targets.answers import Answers, Run
from layerlens.targets.outputs import main_output
from layerlens.targets.target import Names

from .block_stack import Stream

VALUES = {"probability": "1", "logit": "score", "rank": "1 is the likeliest"}

CLOSE = 1e-3
"""Largest difference of the last layer's answer from the model's own, relative to its size."""

Head: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""From the stream to scores, `(batch, classes)` or `(batch, positions, classes)`."""

Classes: TypeAlias = int | Sequence[int] | torch.Tensor | None
"""The classes to watch: one for all columns, one per sample, or one per column."""


@public
def logit_lens(
    model: nn.Module,
    x: Input,
    layers: Selection = None,
    *,
    head: Head | None = None,
    target: Classes = None,
    value: Literal["probability", "logit", "rank"] = "probability",
    top: int = 5,
    names: Names = None,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> LogitLens:
    r"""Read what the model would answer if the stream of each layer were that of its last block.

    The stream h_l after block l replaces that of the last block, and the model continues from there with its own code:
    p_l = softmax(W norm(h_l)) in a language model (nostalgebraist 2020, "interpreting GPT: the logit lens"), the
    pooling and head of a classifier. So the last row is the model's answer itself. For a language model there is an
    answer at each position.

    Cost: 7 F (find the blocks, find the batch axis on a doubled batch, keep the streams, try the head, read all streams
    at once), and a head for each layer. Where the model needs its input after the last block as well, the last run is
    one on L copies of the batch, L the layers.

    Args:
        model: any module with at least two layers that return tensors of one shape; it is run in eval mode.
        layers: which layers to read, see `Selection`; the model continues from the last of them to run. None takes the
            list of blocks that most of the model is made of (`model.layers.*`), and the input of the first.
        head: from the stream to scores `(batch, classes)` or `(batch, positions, classes)`, instead of the model's own
            code after the last layer.
        target: class, or token id, to watch: one for all, one per sample, or one per column; None takes the model's
            answer at each.
        value: its probability, its logit, or its rank.
        top: number of the likeliest classes kept for each layer and position.
        names: names of the classes.

    Returns:
        `LogitLens`: layer x position (of all samples, one after another, without padding), or layer x sample. The
        null is the mean of the same number for the same target at all other columns: what a layer says whatever the
        position. Its checks are `"kl"`, the divergence KL(p_last || p_l) in nats, `(rows, columns)`, and `"own
        output"`, the largest difference of the last row, as computed by the lens, from the model's own, relative to
        its size.

    Raises:
        LayerNotFound: when no layers fit.
        OptionError: when an option does not fit the output.
        TargetError: when the output holds no scores, or the target is not a class.

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
        stream = Stream.read(model, as_inputs(x).named_for(model, forward), layers, forward, seed)
        reader = HeadReader(stream, head)
        own = _log_p(reader.own)
        batch, classes = stream.inputs.batch, own.shape[1]
        if classes < 2:
            raise OptionError(f"the output {tuple(reader.own.shape)} has one class; a lens compares several.")
        if names is not None and not isinstance(names, Mapping) and len(names) > classes:
            raise TargetError(
                f"the output {tuple(reader.own.shape)} has {classes} numbers at each place, and there are {len(names)} "
                "names of tokens or classes: the model ends before its head. Give one with a head (such as "
                "AutoModelForMaskedLM), or head=."
            )
        kept = _tokens(stream.inputs, reader.own, lambda inputs: inputs.run(model, forward))  # columns without padding
        own, watched, columns = own[kept], _targets(target, own, batch)[kept], len(kept)
        values, tops, scores, kl, null = [], [], [], [], []
        for logits in track(reader.rows(), "logit lens", total=len(stream.names), enabled=progress):
            log_p = _log_p(logits)[kept]
            likeliest = log_p.topk(min(top, classes), dim=1)
            tops.append(likeliest.indices)
            scores.append(likeliest.values.exp())
            kl.append(torch.where(own.isneginf(), 0.0, own.exp() * (own - log_p)).sum(dim=1).clamp_min(0))
            scores_at = _flat(logits)[kept.to(logits.device)].double().cpu()
            value_at = _target_values(scores_at, log_p, watched, value)  # (columns, targets)
            values.append(value_at.diagonal())
            null.append((value_at.sum(dim=0) - value_at.diagonal()) / max(columns - 1, 1))
    warn_left_out("logit_lens", stream.left_out, layers is not None)
    if not reader.difference < CLOSE:
        warn(
            "logit_lens: the last layer, read in this way, does not give the model's own output "
            f"(relative difference {reader.difference:.2g}); is the head complete, with its norm?",
        )
    positions = reader.own.ndim == 3
    ids = torch.stack(tops)
    return LogitLens(
        quantity=f"{value} of the target",
        rows=tuple(stream.names),
        columns=_column_names(batch, reader.own.shape[1] if positions else 1, positions, kept),
        values=torch.stack(values),
        axes=("layer", "position" if positions else "sample"),
        units=VALUES[value],
        signed=value == "logit",
        method=f"logit lens, {reader.method}",
        settings={
            "value": value,
            "target": target if isinstance(target, int) else "the model's answer" if target is None else "given",
            "top": top,
            "seed": seed,
            "left_out": stream.left_out,
        },
        null=torch.stack(null) if columns > 1 else None,
        checks={"kl": torch.stack(kl), "own output": torch.tensor(reader.difference, dtype=torch.float64)},
        explanation=(
            f"Each value is the {value} of the target when the stream of that layer is read by what comes after the "
            "last one.",
            "Early layers need not speak the last layer's language: that a target is not read there does not say that "
            "it is not known yet, and a value at its null is said at other positions as well.",
        ),
        targets=tuple(watched.tolist()),
        top=ids,
        scores=torch.stack(scores),
        names=_names(names, [*set(ids.flatten().tolist()), *watched.tolist()]),
    )


class HeadReader:
    """Reads streams by the model's own code, or by a given head.

    Raises:
        OptionError: when the head does not return scores.
        TargetError: when the model does not.
    """

    def __init__(self, stream: Stream, head: Head | None) -> None:
        self.stream, self.head = stream, head
        self.own = main_output(stream.output)
        self.copies, self.method = False, "the model's own head, all layers in one run"
        self.difference = 0.0
        last = stream.values[-1]
        if head is not None:
            self.own = head(last.movedim(stream.axis, 0))
            self.method = "the head given"
            if (
                not isinstance(self.own, torch.Tensor)
                or self.own.ndim not in (2, 3)
                or len(self.own) != stream.inputs.batch
            ):
                raise OptionError("head must return scores (batch, classes) or (batch, positions, classes).")
            self.difference = _relative_difference(self.own, main_output(stream.output))
            return
        if self.own.ndim not in (2, 3) or not self.own.is_floating_point() or len(self.own) != stream.inputs.batch:
            steps = ' or, for the steps of generate(), lens.generate(prompt, record="logit_lens")'
            more = "" if self.own.is_floating_point() else steps
            raise TargetError(
                f"the output {tuple(self.own.shape)} is no (batch, classes) or (batch, positions, classes): give head="
                f"{more}."
            )
        # whether what follows takes other batch sizes than the input's is tried: twice the last must be the answer
        try:
            twice = stream.read_on([last, last], copies=False)
            fits = len(twice) == 2 * len(self.own) and all(
                _relative_difference(part, self.own) < CLOSE for part in twice.chunk(2)
            )
        except Exception:  # whatever the model says to a batch that does not fit its input
            fits = False
        if not fits:
            self.copies, self.method = True, "the model's own head, a run for each layer"

    def rows(self) -> Iterator[torch.Tensor]:
        """Read each layer.

        Yields:
            The scores, `(batch, ...)`; for the last layer the model's own.
        """
        values = self.stream.values
        if self.head is not None:
            for value in values:
                yield self.head(value.movedim(self.stream.axis, 0))
            return
        size = max(1, MEMORY // max(1, self.own.numel() * 8))
        for start in range(0, len(values), size):
            part = values[start : start + size]
            scores = self.stream.read_on(part, self.copies).chunk(len(part))
            if start + size >= len(values):
                self.difference = _relative_difference(scores[-1], self.own)
                scores = (*scores[:-1], self.own)
            yield from scores


def _relative_difference(scores: torch.Tensor, own: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest score."""
    if scores.shape != own.shape:
        return float("inf")
    return float((scores.double() - own.double()).abs().max() / own.double().abs().max().clamp_min(1e-30))


def _column_names(batch: int, places: int, positions: bool, kept: torch.Tensor) -> tuple[str, ...]:
    """Name the columns; places are counted within the tokens of each text."""
    if not positions:
        return tuple(f"sample {k}" for k in range(batch))
    own = torch.cat([torch.arange(int(count)) for count in torch.bincount(kept // places, minlength=batch)]).tolist()
    pairs = zip((kept // places).tolist(), own, strict=True)
    return tuple(f"{place}" if batch == 1 else f"sample {k}, {place}" for k, place in pairs)


def _tokens(inputs: Inputs, output: torch.Tensor, run: Run) -> torch.Tensor:
    """The columns that belong to tokens and not to padding, of those of all samples one after another."""
    every = torch.arange(output.shape[:-1].numel())
    if output.ndim != 3 or not Answers(inputs).padded(output.shape[1]):
        return every
    used = Answers(inputs, run).used(output.shape[1])
    return every if used is None else every[used.flatten().cpu()]


def _flat(scores: torch.Tensor) -> torch.Tensor:
    """Return scores as `(columns, classes)`."""
    return scores.reshape(-1, scores.shape[-1])


def _log_p(scores: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities `(columns, classes)`, float64; for a distribution its logarithms."""
    rows = _flat(scores).double().cpu()
    if bool((rows >= 0).all()) and bool(((rows.sum(dim=1) - 1).abs() < 1e-3).all()):
        return rows.log()
    return rows.log_softmax(dim=1)


def _target_values(scores: torch.Tensor, log_p: torch.Tensor, watched: torch.Tensor, value: str) -> torch.Tensor:
    """Return at each column the value of each column's target, `(columns, columns)`."""
    if value == "logit":
        return scores[:, watched]
    if value == "probability":
        return log_p[:, watched].exp()
    return torch.stack([(log_p > log_p[:, [k]]).sum(dim=1) + 1.0 for k in watched.tolist()], dim=1).double()


def _targets(target: Classes, own: torch.Tensor, batch: int) -> torch.Tensor:
    """Return the class to watch at each column, `(columns,)`.

    Raises:
        TargetError: when they do not fit the output.
    """
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
