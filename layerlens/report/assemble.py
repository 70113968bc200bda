"""Run the analyzers of a report and gather what they found."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from layerlens.analyzers.saliency.saliency import known_methods
from layerlens.analyzers.structure.layer_table import layers as layer_table
from layerlens.errors import OptionError, choose
from layerlens.inputs.inputs import Input
from layerlens.model.hashing import weights_digest
from layerlens.model.layers import Layers, Selection
from layerlens.progress import track
from layerlens.results import LayerTable
from layerlens.signatures import public
from layerlens.targets.target import Spec
from layerlens.turns import turn
from layerlens.wrapped_model import WrappedModel

from . import checks, provenance
from .content import Report
from .page import check_place, write
from .sample_section import PROFILES, examine, measure
from .samples import Sample, read

METHODS = ("auto", "integrated_gradients")
"""Saliency methods shown next to relevance by default."""

MOST_LAYERS = 64
ONE_SAMPLE = "one sample gives no interval"
Methods: TypeAlias = Sequence[str] | Mapping[str, Mapping[str, Any]]


@public
def report(
    lens: WrappedModel,
    inputs: Input,
    targets: Spec | list[Spec] = None,
    path: str | os.PathLike[str] = "report.html",
    *,
    methods: Methods = METHODS,
    layers: Selection = None,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    profiles: Sequence[str] = tuple(PROFILES),
    controls: bool = True,
    progress: bool | None = None,
) -> Path:
    """Write one self-contained HTML page on a model and some inputs: no script, nothing from outside, works offline.

    It shows what was run (weights and inputs by their SHA-256), checks with their numbers, the input, relevance, ledger
    and saliency maps of each sample, profiles by layer, and the layer table. It is written whole or not at all.
    Warnings of the analyzers, and what they cannot do with this model, are on the page.

    Args:
        lens: a `Lens`.
        inputs: inputs as the lens takes them, `(batch, ...)`: images, series, vectors, token ids, several inputs; or
            texts. Each sample is run by itself.
        targets: what is explained: a list has one per sample, anything else is for all; None is the predicted class.
        path: the file; an existing one is replaced.
        methods: names of saliency methods shown next to relevance, or name -> options.
        layers: layers whose relevance and profiles are shown; None for the blocks of the model, or all layers of a
            small one.
        labels: one name per sample; None is its number, after its name in the index of a DataFrame.
        title: title of the page; None makes one from the name of the model.
        profiles: measures by layer: `"jacobian"`, `"noise_response"`.
        controls: whether to compare each map with maps that never look at the model, the slowest part.

    Returns:
        The path written.

    Raises:
        ResultFileError: when the file cannot be written.
        MissingPackage: when jinja2 is not installed.
        InputError, TargetError, OptionError, LayerNotFound: when inputs, targets, options or layers cannot be used.

    Cost:
        For each sample about 3 gradients for relevance, the passes of the methods, and 2 x 17 forward passes for each
        map and control (4 x 17 for images); for the profiles about 50 passes, and 8 for each layer.

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


@public
def build(
    lens: WrappedModel,
    inputs: Input,
    targets: Spec | list[Spec] = None,
    *,
    recipe: Callable[[list[Sample]], str],
    path: str | os.PathLike[str] | None = None,
    methods: Methods = METHODS,
    layers: Selection = None,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    profiles: Sequence[str] = tuple(PROFILES),
    controls: bool = True,
    progress: bool | None = None,
    keep: bool = False,
) -> Report:
    """Gather what `report` writes, as data.

    Args:
        lens: a `Lens`.
        inputs: inputs, as all parameters that are not described here, as in `report`.
        recipe: returns the text that says how to reproduce the report.
        path: where it will be written, checked before the work.
        keep: whether to keep results and plots, which are large, with the pictures made from them.

    Raises:
        ResultFileError, InputError, TargetError, OptionError, LayerNotFound: as `report`.
    """
    if path is not None:
        check_place(path)
    wanted = _methods(methods)
    for name in profiles:
        choose("profile", name, PROFILES)
    if layers is not None:
        Layers(lens.model).select(layers)
    before = weights_digest(lens.model)
    log = WarningLog()
    with log.collect():
        samples = read(lens, inputs, targets, labels)
        table = layer_table(lens.model, samples[0].inputs, forward=lens.forward)
    chosen = main_layers(table) if layers is None else layers
    count = len(samples) * (2 + len(wanted)) + len(profiles)
    panels, made = [], []
    with contextlib.closing(track(range(count), "report", enabled=progress)) as steps:
        for sample in samples:
            with log.collect(sample.label):
                panel, found = examine(lens, sample, wanted, chosen, controls, steps)
            panels.append(panel if keep else panel.light())
            made += found
        with log.collect():
            measured = [measure(lens, name, samples, chosen, steps) for name in profiles]
    made.append(checks.of_weights(before, weights_digest(lens.model)))
    name = type(lens.model).__name__
    return Report(
        title=title or f"Inside {name}",
        summary=f"{name} on {len(samples)} sample{'s' * (len(samples) > 1)}, looked at with layerlens.",
        facts=provenance.model_facts(lens, before, samples),
        recipe=recipe(samples),
        checks=checks.ordered(made),
        warnings=log.texts(len(samples)),
        panels=tuple(panels),
        profiles=tuple(measured),
        table=((*table.HEADS, *table.MORE), *(one + two for one, two in zip(table.cells(), table.more(), strict=True))),
        table_summary=", ".join(f"{name} {text}" for name, text in table.summary()[1:]),
    )


def _methods(methods: Methods) -> dict[str, dict[str, Any]]:
    if isinstance(methods, str):
        raise OptionError(f"methods must be a list of names, got the text {methods!r}: methods=[{methods!r}].")
    given = {name: dict(methods[name]) if isinstance(methods, Mapping) else {} for name in methods}
    for name in given:
        choose("saliency method", name, known_methods())
    return given


def main_layers(table: LayerTable) -> list[str]:
    """Return the layers to show in one figure: as deep as at most 64 of them go, with those that have none inside.

    Containers that do not run themselves, such as lists of layers, do not count as depth.
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


class WarningLog:
    """The warnings of the analyzers, each text once; warnings that are not meant for users are passed on."""

    def __init__(self) -> None:
        self._labels: dict[str, list[str]] = {}

    @contextlib.contextmanager
    def collect(self, label: str | None = None) -> Iterator[None]:
        """Collect the warnings raised inside the `with` block, about the sample `label` unless None."""
        with turn, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for one in caught:
            text = " ".join(str(one.message).split())
            if not issubclass(one.category, (UserWarning, RuntimeWarning)):
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
            elif ONE_SAMPLE not in text:  # each sample is run for itself, which is meant
                labels = self._labels.setdefault(text, [])
                if label is not None and label not in labels:
                    labels.append(label)

    def texts(self, count: int) -> tuple[str, ...]:
        """Return the texts, each with the samples that it is about unless it is about all `count`."""
        return tuple(
            f"{', '.join(labels)}: {text}" if labels and len(labels) < count else text
            for text, labels in self._labels.items()
        )
