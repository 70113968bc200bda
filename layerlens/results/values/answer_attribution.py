"""What each source in a prompt is worth to each part of an answer."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerlens.errors import InputError, OptionError, check_count, need

from ..base import figures
from ..files import write_page
from .matrix import Matrix


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AnswerAttribution(Matrix):
    """What each source in a prompt is worth to each part of an answer, `values[part, source]`.

    `rows` and `columns` name the parts and sources, shortened and numbered; `error` holds the standard errors, and is
    None for a method that draws nothing at random.

    Attributes:
        prompt: the text that the model read before the answer.
        answer: the answer.
        spans: first character of each source in the prompt, and the one after its last.
        part_spans: first character of each part in the answer, and the one after its last.
        scores: log-probability of each part after the whole prompt and the parts before it, `(parts,)`, in nats.
        intercept: what a part is predicted to have without any source, `(parts,)`, in the units of the values.
        rest: what else the score is booked with, `(parts,)` each: with the values it adds up to `scores`. Empty for
            methods whose values do not add up.
        scale: `"log-probability"`, or `"logit"` of the probability, in which the values are measured.
        passes: number of forward passes; a backward pass counts as two, and writing the answer is not counted.
        seconds: time that they took.
    """

    prompt: str = ""
    answer: str = ""
    spans: tuple[tuple[int, int], ...] = ()
    part_spans: tuple[tuple[int, int], ...] = ()
    scores: torch.Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))
    intercept: torch.Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))
    rest: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    scale: str = "log-probability"
    passes: int = 0
    seconds: float = 0.0

    @property
    def sources(self) -> tuple[str, ...]:
        """The texts of the sources."""
        return tuple(self.prompt[start:stop] for start, stop in self.spans)

    @property
    def parts(self) -> tuple[str, ...]:
        """The texts of the parts of the answer."""
        return tuple(self.answer[start:stop] for start, stop in self.part_spans)

    @property
    def standard_errors(self) -> torch.Tensor | None:
        """The standard error of each value, `(parts, sources)`; None for a method that draws nothing at random."""
        return self.error

    def top(self, k: int = 3, part: int | str | None = None) -> list[tuple[str, float]]:
        """Return (source, value) of the sources that a part of the answer needs most, largest value first.

        Args:
            k: how many.
            part: number or text of the part; None for the whole answer, with the sum over its parts.

        Raises:
            OptionError: when there is no such part, or several with that text.
        """
        check_count("k", k)
        row = self.values.sum(dim=0) if part is None else self.values[self.part_number(part)]
        order = row.argsort(descending=True, stable=True)[:k].tolist()
        return [(self.sources[index], float(row[index])) for index in order]

    def part_number(self, part: int | str) -> int:
        """Return the number of a part of the answer, given by its number or text.

        Raises:
            OptionError: when there is no such part, or several with that text.
        """
        if isinstance(part, str):
            found = [number for number, text in enumerate(self.parts) if text.strip() == part.strip()]
            if len(found) != 1:
                how = f"{len(found)} parts of the answer are" if found else "no part of the answer is"
                raise OptionError(f"{how} {part!r}; give a number from 0 to {len(self.parts) - 1}. {list(self.parts)}")
            return found[0]
        if isinstance(part, bool) or not isinstance(part, int) or not -len(self.rows) <= part < len(self.rows):
            raise OptionError(f"the answer has {len(self.rows)} parts (0 to {len(self.rows) - 1}), not {part!r}.")
        return part % len(self.rows)

    def predict(self, keep: Sequence[bool] | np.ndarray[Any, Any] | torch.Tensor) -> torch.Tensor:
        """Return the predicted log-probability of each part when only some sources stay in the prompt.

        Compared with what the model says without the others, this is the linear datamodelling score
        (`scipy.stats.spearmanr` over many random `keep`).

        Args:
            keep: True for each source that stays, `(sources,)`, or `(n, sources)` for several prompts.

        Returns:
            `(parts,)`, or `(n, parts)`.

        Raises:
            InputError: when there is not one entry for each source.
        """
        kept = torch.as_tensor(keep, dtype=torch.float64)
        if kept.ndim not in (1, 2) or kept.shape[-1] != len(self.columns):
            raise InputError(f"keep holds {tuple(kept.shape)} for {len(self.columns)} sources: one entry for each.")
        found = self.intercept + kept @ self.values.T
        return torch.nn.functional.logsigmoid(found) if self.scale == "logit" else found

    def to_pandas(self) -> Any:
        """A row for each pair: part, source, value, standard error where there is one. pandas must be installed."""
        pandas = need("pandas", "to_pandas")
        rows, columns = len(self.rows), len(self.columns)
        table = {
            "part": np.repeat(np.array(self.parts, dtype=object), columns),
            "source": np.tile(np.array(self.sources, dtype=object), rows),
            "value": self.values.numpy().reshape(-1),
        }
        if self.error is not None:
            table["standard error"] = self.error.numpy().reshape(-1)
        return pandas.DataFrame(table)

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write a page with the answer and the prompt: a part of the answer opens its colored sources.

        It has no script, and is light or dark as the reader's browser is.

        Args:
            path: file to write.

        Returns:
            The path written.

        Raises:
            PlotError: if a value is not a finite number, or all are zero.
            ResultFileError: if the folder does not exist.
        """
        return write_page(path, "An answer and its sources", figures().sources_html(self, count=None))

    def summary(self) -> list[tuple[str, str]]:
        """The answer, what was measured, and the best sources of each part."""
        rows = [
            ("answer", _short(self.answer, 100)),
            ("log p", f"{float(self.scores.sum()):.2f} nats"),
            ("method", self.method),
            ("size", f"{len(self.rows)} {'part' if len(self.rows) == 1 else 'parts'} x {len(self.columns)} sources"),
            ("cost", f"{self.passes} passes, {self.seconds:.1f} s"),
        ]
        if self.settings.get("ended") is False:
            rows.append(("note", "the answer was cut off; max_new_tokens= gives a longer one"))
        return rows

    def _number(self, part: int, source: int) -> str:
        error = "" if self.error is None else f" +- {float(self.error[part, source]):.2f}"
        return f"{float(self.values[part, source]):+.2f}{error}"

    def __repr__(self) -> str:
        """The answer, and under each of its parts the best sources."""
        lines = [f"{type(self).__name__}: {'; '.join(f'{name}: {text}' for name, text in self.summary())}"]
        most = 8
        for number, text in enumerate(self.parts[:most]):
            lines.append(f"  {_short(text, 80)!r}  (log p {float(self.scores[number]):.2f})")
            for source in self.values[number].argsort(descending=True, stable=True)[:3].tolist():
                lines.append(f"    {self._number(number, source):>8}  {_short(self.sources[source], 80)!r}")
        if len(self.parts) > most:
            lines.append(f"  ... and {len(self.parts) - most} more parts")
        if self.rest:
            booked = ", ".join(f"{name} {float(amount.sum()):+.2f}" for name, amount in self.rest.items())
            lines.append(f"  besides the sources: {booked}")
        return "\n".join([*lines, "  .plot() colors the sources, .explain() says what the numbers mean"])


def _short(text: str, most: int = 40) -> str:
    """A text in one line of at most so many letters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3].rstrip()}..."


def numbered(texts: Sequence[str], most: int = 28) -> tuple[str, ...]:
    """Return a short name for each text, with its number, so that no two are the same."""
    return tuple(f"{number} {_short(text, most)}" for number, text in enumerate(texts))
