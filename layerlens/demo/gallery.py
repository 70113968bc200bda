"""The demo: a report on the demo model, and each of its figures as PNG and PDF."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from layerlens import plotting
from layerlens.errors import InputError
from layerlens.inputs.inputs import as_inputs
from layerlens.lens import Lens
from layerlens.plotting.drawing import attribution_sample as drawn_sample
from layerlens.report import build
from layerlens.report.alt_text import of_map
from layerlens.report.content import Panel, Picture, Report
from layerlens.report.page import render
from layerlens.results import Attribution, Relevance
from layerlens.targets.target import Spec

from .demo_subject import Subject

METHODS: Final = ("grad_cam", "input_x_gradient", "integrated_gradients", "smooth_grad")
FILES: Final = {"jacobian": "sensitivity"}
"""Name of a picture of the report -> name of its files, where they differ."""


def make(
    subject: Subject, pictures: dict[str, Tensor], target: Spec = None, *, command: str = "python -m layerlens demo"
) -> Report:
    """Run the analyzers of a report on the pictures, and draw activations, class activation maps and inner relevance.

    Args:
        subject: the model and what is known about it.
        pictures: title -> input (1, channels, height, width).
        target: a class index or name for all pictures; None for the predicted class of each.
        command: how to reproduce the report.

    Raises:
        TargetError: when the target is unknown.
    """
    lens = Lens(subject.model, class_names=subject.class_names)
    title, first = next(iter(pictures.items()))
    lens.target(target)
    for method in METHODS:  # the first calls in a process are slow and would spoil the times
        lens.saliency(first, method=method)
    lens.relevance(first)
    blocks = sorted({path.rsplit(".", 1)[0] for path in subject.mosaic if path.rsplit(".", 1)[-1].isdigit()})
    report = build(
        lens,
        [as_inputs(x) for x in pictures.values()],
        target,
        recipe=lambda samples: command,
        methods=METHODS,
        layers=[subject.mosaic[0], *(f"{block}.*" for block in blocks)],
        labels=list(pictures),
        title=f"Inside {subject.name}",
        profiles=("jacobian",),
        controls=False,
        keep=True,
    )
    panels = tuple(
        dataclasses.replace(panel, blocks=(*panel.blocks, _relevance_inside(panel, subject.depth)))
        for panel in report.panels
    )
    explained = "; ".join(f"{panel.label}: {dict(panel.facts)['target']}" for panel in panels)
    return dataclasses.replace(
        report,
        summary=f"{subject.source[:1].upper()}{subject.source[1:]}. Explained: {explained}.",
        overview=(_activations(lens, subject, title, first), _class_activation(panels)),
        panels=panels,
    )


def _activations(lens: Lens, subject: Subject, title: str, x: Tensor) -> Picture:
    maps = [lens.activation_maps(x, layer) for layer in subject.mosaic]
    caption = (
        f"The strongest six units of layers from the first to the last, on {title!r}: edges and colors first, then "
        "textures, then parts, on ever coarser grids. Each row has one scale, at its bar."
    )
    alt = "Maps of units, a row per layer: " + "; ".join(
        f"{one.layer}, {one.values.shape[-2]} x {one.values.shape[-1]} places, {float(one.values.min()):.3g} to "
        f"{float(one.values.max()):.3g}"
        for one in maps
    )
    return Picture.of(plotting.activation_mosaic(maps), "activations", "Activations by depth", f"{alt}.", caption)


def _class_activation(panels: Sequence[Panel]) -> Picture:
    maps = [_result(panel, "grad_cam") for panel in panels]
    size = maps[0].settings["size"]
    caption = (
        f"Grad-CAM at {maps[0].settings['layer']}, a grid of {size[0]} x {size[1]} places, enlarged, on one scale for "
        "all pictures."
    )
    labels = [f"{panel.label}, score {float(one.score[0]):.3g}" for panel, one in zip(panels, maps, strict=True)]
    plot = plotting.overlay_grid(maps, labels=labels)
    return Picture.of(plot, "grad_cam", "Class activation maps", _alt(maps, labels), caption)


def _relevance_inside(panel: Panel, layer: str) -> Picture:
    relevance = _relevance(panel)
    ledger, inside = relevance.ledger, at_depth(relevance, layer)
    caption = (
        f"Relevance of the pixels, and at the output of {layer}, in units of the score. Of a score of "
        f"{float(ledger.score[0]):.4g} the pixels have {float(ledger.inputs[0]):.4g}, so a map of pixels alone leaves "
        f"{float(ledger.gap[0]):.0%} of it out; at {layer} the places sum to {float(inside.tensor.sum()):.4g}. The "
        "rest went to constants, as the ledger shows."
    )
    maps = [relevance, inside]
    alt = _alt(maps, [one.how for one in maps])
    return Picture.of(plotting.compare_methods(maps), "relevance", "Relevance inside the model", alt, caption)


def at_depth(relevance: Relevance, layer: str) -> Attribution:
    """Return the relevance at a layer's output as a map of the picture: summed over channels, spread over the pixels.

    Its sum is the sum at the layer, so the map is in units of the score, like the relevance of the pixels.
    """
    (values,) = relevance.layers[layer]  # (1, channels, height, width)
    assert isinstance(relevance.inputs, Tensor)
    size = relevance.inputs.shape[-2:]
    places = values.sum(dim=1, keepdim=True)  # (1, 1, height, width)
    share = places.shape[-1] * places.shape[-2] / (size[0] * size[1])
    spread = torch.nn.functional.interpolate(places, size=size, mode="nearest")[:, 0] * share
    fields = {field.name: getattr(relevance, field.name) for field in dataclasses.fields(Attribution)}
    axes = ("batch", "height", "width")
    return Attribution(**{**fields, "values": spread, "axes": axes, "method": f"relevance at {layer}"})


def _alt(maps: Sequence[Attribution], labels: Sequence[str]) -> str:
    return " ".join(of_map(drawn_sample.read(one, 0), label) for one, label in zip(maps, labels, strict=True))


def _result(panel: Panel, method: str) -> Attribution:
    return next(one for one in panel.results if one.method == method)


def _relevance(panel: Panel) -> Relevance:
    return next(one for one in panel.results if isinstance(one, Relevance))


def files(report: Report) -> dict[str, Picture]:
    """Return file name without suffix -> picture, in the order of the page."""
    folders = {"": ""}
    for label in (panel.label for panel in report.panels):
        plain = "".join(c if c.isalnum() else "_" for c in label.lower())
        numbered = (f"{plain}_{number}" if number > 1 else plain for number in range(1, len(report.panels) + 1))
        folders[label] = next(name for name in numbered if f"{name}_" not in folders.values()) + "_"
    return {f"{folders[label]}{FILES.get(one.name, one.name)}": one for label, one in report.pictures()}


def check_folder(out: Path) -> None:
    """Check, before the work, that the folder `out` can be made and written to.

    Raises:
        InputError: when it cannot.
    """
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"cannot write to {str(out)!r}: {str(nearest)!r} is a file; give a folder.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {str(out)!r}: no permission in {str(nearest)!r}.")


def write(report: Report, out: Path) -> list[Path]:
    """Write `index.html` and the figures into the folder `out`, made if missing; other files in it are kept.

    All files are written to a temporary folder and moved at the end: a canceled run leaves nothing.

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
        (partial / "index.html").write_text(render("report.html", report=report), encoding="utf-8")
        for name, picture in files(report).items():
            assert picture.plot is not None
            (partial / f"{name}.png").write_bytes(picture.png)
            picture.plot.save(partial / f"{name}.pdf")
        names = sorted(path.name for path in partial.iterdir())
        for name in names:
            os.replace(partial / name, out / name)
    except OSError as error:
        raise InputError(f"cannot write to {str(out)!r} ({error.strerror or error}).") from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial)
    return [out / "index.html", *(out / name for name in names if name != "index.html")]


def summary(report: Report) -> str:
    """Return the main numbers as a table for the terminal; times are multiples of one forward pass."""
    rows = {"picture": [panel.label for panel in report.panels]}
    rows["top class"] = [panel.outputs[0][0] for panel in report.panels]
    rows["prob."] = [panel.outputs[0][2] for panel in report.panels]
    ledgers = [_relevance(panel).ledger for panel in report.panels]
    rows["conservation gap"] = [f"{float(ledger.gap[0]):.0%}" for ledger in ledgers]
    rows["ledger residual"] = [f"{float(ledger.relative[0]):.0e}" for ledger in ledgers]
    gaps = [_result(panel, "integrated_gradients").checks["completeness gap"] for panel in report.panels]
    rows["completeness gap"] = [f"{float(gap[0]):.1%}" for gap in gaps]
    for name in report.panels[0].times:
        rows[f"{name}, x fwd"] = [f"{panel.times[name]:.1f}" for panel in report.panels]
    width = max(map(len, rows))
    cell = max(len(text) for texts in rows.values() for text in texts)
    return "\n".join(
        "  ".join([head.ljust(width), *(one.rjust(cell) for one in texts)]) for head, texts in rows.items()
    )
