"""The gallery: figures of everything that the demo found, as PNG and PDF, and one page that holds them all."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from layerlens.errors import InputError
from layerlens.lens import Lens
from layerlens.results import LayerTable

from .demo_subject import Subject
from .figures import Figure, figures
from .measure import Findings, activations, examine, profile
from .page import page


@dataclasses.dataclass(frozen=True)
class Gallery:
    """What a run of the demo made.

    Attributes:
        subject: what was looked at.
        table: the layers of the model.
        findings: by picture.
        figures: in order.
    """

    subject: Subject
    table: LayerTable
    findings: list[Findings]
    figures: list[Figure]


def make(subject: Subject, pictures: dict[str, Tensor], target: Any = None) -> Gallery:
    """Run every analyzer on the pictures and draw what they find; tells on stderr what it is doing.

    Args:
        subject: the model with what is known of it.
        pictures: title -> input (1, channels, height, width).
        target: a class index or name for all pictures; None is the predicted class of each.

    Raises:
        TargetError: when the target is unknown.
    """
    lens = Lens(subject.model, class_names=subject.class_names)
    first = next(iter(pictures.values()))
    lens.target(0 if target is None else target)  # a bad target ends the run before the work
    _tell(f"{subject.name}: {len(lens.select())} layers")
    table = lens.layers(first)
    examine(lens, subject, "", first, target)  # the first calls of a process are slow, and would spoil the times
    findings = []
    for title, x in pictures.items():
        _tell(f"{title}: Grad-CAM, saliency, relevance")
        findings.append(examine(lens, subject, title, x, target))
    _tell("activations and sensitivity")
    maps, sensitivity = activations(lens, subject, first), profile(lens, subject, first)
    _tell("figures")
    return Gallery(subject, table, findings, figures(subject, findings, maps, sensitivity))


def check_folder(out: Path) -> None:
    """See, before the work, whether the folder `out` can be made and written to.

    Raises:
        InputError: when it cannot.
    """
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"cannot write to {str(out)!r}: {str(nearest)!r} is a file; give a folder.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {str(out)!r}: no permission in {str(nearest)!r}.")


def write(gallery: Gallery, out: Path) -> list[Path]:
    """Write the figures and `index.html` into the folder `out`, made when missing; other files in it stay.

    Everything is written beside the folder's files first and moved into place at the end: a run that is cancelled
    leaves nothing.

    Returns:
        The files written, the page first.

    Raises:
        InputError: when the folder cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=out))
    except OSError as error:
        raise InputError(f"cannot write to {str(out)!r} ({error.strerror or error}).") from None
    try:
        for figure in gallery.figures:
            figure.plot.save(partial / f"{figure.name}.png")
            figure.plot.save(partial / f"{figure.name}.pdf")
        (partial / "index.html").write_text(page(gallery, partial), encoding="utf-8")
        names = sorted(path.name for path in partial.iterdir())
        for name in names:
            os.replace(partial / name, out / name)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial)
    return [out / "index.html", *(out / name for name in names if name != "index.html")]


def summary(gallery: Gallery) -> str:
    """The numbers that matter, as a table for the terminal; times are multiples of one forward pass."""
    heads = ["picture", "top class", "prob.", "conservation gap", "ledger residual", "completeness gap"]
    times = list(gallery.findings[0].times)
    rows = [[*heads, *(f"{name}, x fwd" for name in times)]]
    for found in gallery.findings:
        ledger = found.relevance.ledger
        rows.append(
            [
                found.title,
                found.top,
                f"{found.probability:.2f}",
                f"{float(ledger.gap[0]):.0%}",
                f"{float(ledger.relative[0]):.0e}",
                f"{found.completeness:.1%}",
                *(f"{found.times[name]:.1f}" for name in times),
            ]
        )
    columns = list(zip(*rows, strict=True))
    width = max(len(column[0]) for column in columns)
    cell = max(len(text) for row in rows[1:] for text in row)
    return "\n".join(
        "  ".join([column[0].ljust(width), *(text.rjust(cell) for text in column[1:])]) for column in columns
    )


def _tell(step: str) -> None:
    print(f"layerlens: {step} ...", file=sys.stderr, flush=True)
