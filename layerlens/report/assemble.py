"""Run the analyzers of a report and gather what they found."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from layerlens.analyzers.saliency.saliency import known_methods
from layerlens.analyzers.structure.layer_table import layers as layer_table
from layerlens.errors import OptionError, choose
from layerlens.model.hashing import weights_digest
from layerlens.model.layers import Layers, Selection
from layerlens.progress import track
from layerlens.results import LayerTable
from layerlens.wrapped_model import WrappedModel

from . import checks, provenance
from .content import Report
from .page import check_place, write
from .sample_section import PROFILES, examine, measure
from .samples import Sample, read
from .warning_log import Told

METHODS = ("auto", "integrated_gradients")
"""What is run when nothing is asked for, beside relevance."""

MOST_LAYERS = 64


def report(
    lens: WrappedModel,
    inputs: Any,
    targets: Any = None,
    path: str | os.PathLike[str] = "report.html",
    *,
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] = METHODS,
    layers: Selection = None,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    profiles: Sequence[str] = tuple(PROFILES),
    controls: bool = True,
    progress: bool | None = None,
) -> Path:
    """Write one self-contained HTML page on a model and some inputs: no script, nothing from outside, works offline.

    On it stand what was run (weights and inputs by their SHA-256), checks with their numbers, for each sample the
    input, the relevance with its ledger and the saliency maps, profiles by layer, and the layer table. It is written
    whole or not at all; what the analyzers warn of, and what they cannot do with this model, stands on the page.

    Args:
        lens: a `Lens`.
        inputs: as the lens takes them, `(batch, ...)`: images, series, vectors, token ids, several inputs; or texts.
            Each sample is run for itself.
        targets: what is explained: a list holds one per sample, anything else is for all; None is the predicted class.
        path: the file; one that is there is replaced.
        methods: names of saliency methods shown beside relevance, or name -> options.
        layers: whose relevance and profiles are shown; None takes the model's blocks, or all layers of a small one.
        labels: one name per sample.
        title: of the page; None makes one of the name of the model.
        profiles: which measures by layer: `"jacobian"`, `"noise_response"`.
        controls: whether each map is held against maps that never look at the model (the dearest part).
        progress: whether to show a bar; None when stderr is a terminal and it takes long.

    Returns:
        The path written.

    Raises:
        ResultFileError: when the file cannot be written there.
        MissingPackage: when jinja2 is not installed.
        InputError, TargetError, OptionError, LayerNotFound: when inputs, targets, options or layers cannot be used.

    Cost:
        For each sample about 3 gradients for relevance, what the methods take, and 2 x 17 forward passes for each map
        and control (4 x 17 for images); for the profiles about 50 passes, and 8 for each layer.

    Example:
        >>> import tempfile, torch
        >>> from layerlens import Lens
        >>> lens = Lens(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report(lens, torch.ones(1, 3), path=f"{folder}/report.html").name
        'report.html'
    """
    options = {"methods": methods, "layers": layers, "labels": labels, "title": title, "profiles": profiles}
    made = build(
        lens, inputs, targets, methods=methods, layers=layers, labels=labels, title=title, profiles=profiles,
        controls=controls, progress=progress, path=path,
        recipe=lambda samples: provenance.recipe(
            lens, samples, path, {"targets": targets, **options, "controls": controls}
        ),
    )  # fmt: skip
    return write(made, path)


def build(
    lens: WrappedModel,
    inputs: Any,
    targets: Any = None,
    *,
    recipe: Callable[[list[Sample]], str],
    path: str | os.PathLike[str],
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] = METHODS,
    layers: Selection = None,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    profiles: Sequence[str] = tuple(PROFILES),
    controls: bool = True,
    progress: bool | None = None,
) -> Report:
    """What `report` writes, as data; see there.

    Args:
        lens: a `Lens`.
        inputs: of it.
        targets: what is explained.
        recipe: makes the text that says how to make the report again.
        path: where it will be written, looked at before the work.
        methods: as in `report`, as all that follow.
        layers: whose relevance and profiles are shown.
        labels: one name per sample.
        title: of the page.
        profiles: which measures by layer.
        controls: whether maps are held against controls.
        progress: whether to show a bar.

    Raises:
        ResultFileError, InputError, TargetError, OptionError, LayerNotFound: as `report`.
    """
    check_place(path)
    wanted = _methods(methods)
    for name in profiles:
        choose("profile", name, PROFILES)
    if layers is not None:
        Layers(lens.model).select(layers)
    before = weights_digest(lens.model)
    told = Told()
    with told.of():
        samples = read(lens, inputs, targets, labels)
        table = layer_table(lens.model, samples[0].inputs, forward=lens.forward)
    chosen = main_layers(table) if layers is None else layers
    count = len(samples) * (2 + len(wanted)) + len(profiles)
    examined = []
    with contextlib.closing(track(range(count), "report", enabled=progress)) as steps:
        for sample in samples:
            with told.of(sample.label):
                examined.append(examine(lens, sample, wanted, chosen, controls, steps))
        with told.of():
            measured = [measure(lens, name, samples, chosen, steps) for name in profiles]
    found = [check for _, made in examined for check in made]
    found.append(checks.of_weights(before, weights_digest(lens.model)))
    name = type(lens.model).__name__
    return Report(
        title=title or f"Inside {name}",
        summary=f"{name} on {len(samples)} sample{'s' * (len(samples) > 1)}, looked at with layerlens.",
        facts=provenance.model_facts(lens, before, samples),
        recipe=recipe(samples),
        checks=checks.ordered(found),
        warnings=told.texts(len(samples)),
        panels=tuple(panel for panel, _ in examined),
        profiles=tuple(measured),
        table=((*table.HEADS, *table.MORE), *(one + two for one, two in zip(table.cells(), table.more(), strict=True))),
        table_summary=", ".join(f"{name} {text}" for name, text in table.summary()[1:]),
    )


def _methods(methods: Any) -> dict[str, dict[str, Any]]:
    if isinstance(methods, str):
        raise OptionError(f"methods must be a list of names, got the text {methods!r}: methods=[{methods!r}].")
    given = {name: dict(methods[name]) if isinstance(methods, Mapping) else {} for name in methods}
    for name in given:
        choose("saliency method", name, known_methods())
    return given


def main_layers(table: LayerTable) -> list[str]:
    """The layers that tell most in one figure: as deep as at most 64 of them go, those without any inside included.

    Containers that do not run themselves, such as lists of layers, count as no depth.
    """
    ran = [row.path for row in table.rows if row.path and row.calls]
    depth = {path: sum(path.startswith(f"{other}.") for other in ran) for path in ran}
    leaves = {path for path in ran if not any(other.startswith(f"{path}.") for other in ran)}
    best: list[str] = []
    for level in range(max(depth.values(), default=0) + 1):
        cut = [path for path in ran if depth[path] == level or (depth[path] < level and path in leaves)]
        if len(cut) <= MOST_LAYERS or len(best) < 3:
            best = cut
    return best
