"""Gather what an explorer shows: relevance, activations, heads and the ledger of some inputs."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, Final

import numpy as np

from layerlens.analyzers.common.parts.heads import Heads
from layerlens.analyzers.relevance.relevance import relevance_by_target
from layerlens.analyzers.saliency.saliency import known_methods, saliency
from layerlens.analyzers.structure.layer_table import layers as layer_table
from layerlens.analyzers.structure.routes import route
from layerlens.errors import LayerLensError, OptionError, TargetError, check_count, choose
from layerlens.inputs.inputs import Input
from layerlens.model.hashing import weights_digest
from layerlens.model.layers import LayerPath, Layers, Selection
from layerlens.plotting.style import Array
from layerlens.plotting.words import words
from layerlens.progress import track
from layerlens.report.assemble import WarningLog
from layerlens.report.provenance import input_facts, model_facts
from layerlens.report.sample_section import largest_outputs
from layerlens.report.samples import Sample, read
from layerlens.results import Attribution, Relevance, Result
from layerlens.signatures import public
from layerlens.targets.target import Spec
from layerlens.wrapped_model import WrappedModel

from . import page
from .content import VIEWS, Explorer
from .heads import HeadValues, heads_of, packed_heads, read_heads, sites_of
from .inputs import parts_of
from .layers import NUMBERS, Key, LayerValues, packed, read_layers, tree
from .packing import BYTES, CELLS, Numbers
from .plan import PICTURE, Plan, make_plan

SIZE: Final = 4_500_000
"""Bytes of a file that is asked for by default."""

INPUTS: Final = 0.1
"""Share of it for the maps of inputs, and for their pictures."""


@public
def explore(
    lens: WrappedModel,
    x: Input,
    *,
    targets: Spec | list[Spec] = None,
    layers: Selection = None,
    methods: Sequence[str] = ("gradient",),
    results: Sequence[Any] | Mapping[str, Any] = (),
    labels: Sequence[str] | None = None,
    title: str | None = None,
    units: int = 12,
    size: float = SIZE,
    progress: bool | None = None,
) -> Explorer:
    """Make a page to look around in a model with mouse or keyboard: layers, units, tokens, heads, and the ledger.

    The page is one HTML file that works offline. Every number on it comes from `relevance`, `saliency`, `layer_maps`,
    `contributions` and `attention`. So that the file stays small, maps are sums over blocks of places (of activations
    means) with at most 64 x 64 cells, and maps are kept of the units with most relevance and the largest activation,
    half of them for all inputs and half for each alone; of the others there is a number each. Sums keep the ledger: the
    cells of a map of relevance add up to what all its places do.

    Args:
        lens: a `Lens`.
        x: inputs as the lens takes them, `(batch, ...)`: images, series, vectors, token ids, several inputs; or texts.
            Each sample is run by itself, so that texts may differ in length.
        targets: what is explained, each for every sample: one, or a list of them to compare; None is the predicted
            class of each sample.
        layers: layers to show; None for as many as fit, the blocks first.
        methods: names of saliency methods to compare relevance with.
        results: further results to show in tabs, by titles if they are a dict: answers, graphs, steps of diffusion, and
            anything else that shows itself in a notebook.
        labels: one name per sample; None is its number, after its name in the index of a DataFrame.
        title: title of the page; None makes one from the name of the model.
        units: most units of a layer whose maps are shown; fewer where they do not fit.
        size: bytes that the file should have at most, without `results`. Names are not cut and a picture has at least
            112 pixels, so that very many of them make it larger.

    Returns:
        An `Explorer`, which shows itself in notebooks; `.save("explorer.html")` writes the file.

    Raises:
        OptionError: when an option cannot be used, or a method does not fit the model.
        TargetError: when there is no target, or one does not fit the output.
        InputError, LayerNotFound: when inputs or layers cannot be used.
        RelevanceError: when no relevance can reach the input.

    Cost:
        For each sample about 3 gradients and one more for each further target, 4 forward passes, and the passes of the
        methods for each target; where there is attention also 3 forward and 2 backward passes for each target.

    Example:
        >>> import torch
        >>> from layerlens import Lens
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> Lens(net).explore(torch.ones(1, 3), targets=[0, 1]).views
        ('Input', 'Layers', 'Ledger')
    """
    start = time.perf_counter()
    if isinstance(methods, str):
        raise OptionError(f"methods must be a list of names, got the text {methods!r}: methods=[{methods!r}].")
    for name in methods:
        choose("saliency method", name, known_methods())
    check_count("units", units)
    if not size > 0:
        raise OptionError(f"size must be a number of bytes above 0, got {size!r}.")
    specs = list(targets) if isinstance(targets, list) else [targets]
    if not specs:
        raise TargetError("targets=[] explains nothing; give one or more, or None for the predicted class.")
    tabs = _tabs(results)
    log, notes, left_out = WarningLog(), list[str](), dict[str, str]()
    with log.collect():
        samples = read(lens, x, specs[0], labels)
        table = layer_table(lens.model, samples[0].inputs, forward=lens.forward)
        heads = heads_of(lens, samples[0].inputs)
        plan = make_plan(lens, samples[0].inputs, layers, len(samples), len(specs), units, size, bool(heads))
        left_out |= plan.left_out
        notes += _of_other_routes(lens, samples[1:], {row.path for row in table.rows if row.calls}, layers)
    numbers = Numbers()
    pictures = max(PICTURE, INPUTS * size / len(samples))
    rows: list[dict[str, Any]] = []
    by_layer: list[dict[Key, LayerValues]] = []
    by_head: list[HeadValues | None] = []
    by_sample: list[tuple[str, list[str]]] = []
    ledgers: list[list[Relevance]] = []
    with contextlib.closing(track(range(len(samples)), "explorer", enabled=progress)) as steps:
        for sample in samples:
            next(steps)
            with log.collect(sample.label):
                skipped = dict(left_out)
                said: list[str] = []
                by_sample.append((sample.label, said))
                gathered = _gather(lens, sample, specs, methods, plan, heads, len(samples), skipped, said)
            maps, values, of_heads = gathered
            if sample is samples[0]:
                left_out = skipped
            new = {path: why for path, why in skipped.items() if path not in left_out}  # it took another route
            notes += [f"{sample.label}: layer {path} is not shown: {why.rstrip('.')}." for path, why in new.items()]
            cells = INPUTS * size / BYTES / len(samples) / len(specs) / len(maps)
            rows.append({
                "label": sample.label,
                "text": sample.text,
                "targets": [one.target for one in maps[0]],
                "scores": [float(one.ledger.score[0]) for one in maps[0] if isinstance(one, Relevance)],
                "outputs": largest_outputs(lens, sample),
                "facts": input_facts(sample),
                "parts": parts_of(maps, max(cells, CELLS / 16), pictures, numbers, said),
            })  # fmt: skip
            by_layer.append(values)
            by_head.append(of_heads)
            ledgers.append([one for one in maps[0] if isinstance(one, Relevance)])
            methods_used = [(one[0].how, one[0].units, one[0].signed, one[0].cost) for one in maps]
    entries, amounts = _ledger_rows(ledgers, numbers)
    types = {row.path: row.type for row in table.rows}
    shown, layer_values = packed(by_layer, plan, types, Layers(lens.model), numbers, notes)
    parts, head_values = packed_heads(by_head, plan, len(specs), numbers, notes)
    for row, own, of_sample, amount in zip(rows, layer_values, head_values, amounts, strict=True):
        row |= {"layers": own, "heads": of_sample, "ledger": amount}
    name = type(lens.model).__name__
    notes += _of_samples(by_sample)
    notes += [f"Layer {path} is not shown: {why.rstrip('.')}." for path, why in left_out.items()]
    if plan.deeper:
        room = f"{plan.deeper} layers inside those that are shown do not fit in a file of {size:,.0f} bytes"
        notes.append(f"{room}: layers= chooses which are shown, and a larger size= has room for more.")
    content: dict[str, Any] = {
        "title": title or f"Inside {name}",
        "targets": _target_names(rows, len(specs)),
        "methods": [
            {"name": words(how), "units": unit, "signed": signed, "cost": cost}
            for how, unit, signed, cost in methods_used
        ],
        "samples": rows,
        "layers": shown,
        "tree": tree(lens, shown, table.rows),
        "numbers": [{"name": one, "about": about} for one, about in NUMBERS[: None if len(specs) > 1 else -1]],
        "entries": entries,
        "heads": parts,
        "results": tabs,
        "facts": model_facts(lens, weights_digest(lens.model), samples),
        "notes": list(dict.fromkeys(notes)),
        "warnings": log.texts(len(samples)),
    }
    seconds = time.perf_counter() - start
    return Explorer(content["title"], content, numbers.joined(), seconds, log.texts(len(samples)))


def _gather(
    lens: WrappedModel,
    sample: Sample,
    specs: Sequence[Spec],
    methods: Sequence[str],
    plan: Plan,
    heads: Sequence[Heads],
    samples: int,
    left_out: dict[str, str],
    notes: list[str],
) -> tuple[list[list[Attribution]], dict[Key, LayerValues], HeadValues | None]:
    """Run the analyzers on one sample: maps by method and target, layers, and heads.

    Raises:
        OptionError: when a method does not fit the model.
    """
    inputs = sample.inputs
    targets = [sample.target] if len(specs) == 1 else [lens.target(spec, inputs) for spec in specs]
    wanted: list[Any] = [path for path in plan.paths if path not in left_out]
    found = relevance_by_target(
        lens.model, inputs, targets=targets, layers=[*wanted, *sites_of(heads)] or (), forward=lens.forward
    )
    maps: list[list[Attribution]] = [[lens.with_tokens(one, inputs) for one in found]]
    for method in methods:
        try:
            maps.append([
                lens.with_tokens(saliency(lens.model, inputs, target=one, method=method, forward=lens.forward), inputs)
                for one in targets
            ])  # fmt: skip
        except LayerLensError as error:
            raise OptionError(f"methods: {method!r} cannot be used here: {error} Leave it out.") from error
    values = read_layers(lens, inputs, plan, found, left_out, notes)
    of_heads = read_heads(lens, inputs, targets, heads, found, plan, samples, notes) if heads else None
    return maps, values, of_heads


def _ledger_rows(
    ledgers: Sequence[Sequence[Relevance]], numbers: Numbers
) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """The entries of all ledgers, each once, and their amounts `(target, entry)` by sample."""
    keys: dict[tuple[str, str, str], int] = {}
    for row in ledgers:
        for one in row:
            for entry in one.ledger.entries:
                keys.setdefault((entry.kind, entry.layer, entry.source), len(keys))
    amounts = []
    for row in ledgers:
        table: Array = np.zeros((len(row), len(keys)))
        for target, one in enumerate(row):
            for entry in one.ledger.entries:
                table[target, keys[entry.kind, entry.layer, entry.source]] += float(entry.amount[0])
        sums = [
            [
                float(part[0])
                for part in (ledger.score, ledger.inputs, ledger.additive, ledger.absorbed, ledger.residual)
            ]
            for ledger in (one.ledger for one in row)
        ]
        amounts.append({"sums": sums, "amounts": numbers.add(table)})
    return [{"kind": kind, "layer": layer, "source": source} for kind, layer, source in keys], amounts


def _of_other_routes(
    lens: WrappedModel, samples: Sequence[Sample], first: Set[LayerPath], layers: Selection
) -> list[str]:
    """Notes of layers that run for a sample and not for the first one, which ran `first`: its layers are shown."""
    notes = []
    for sample in samples:
        own = route(lens.model, sample.inputs, layers, forward=lens.forward, progress=False).layers(0)
        new = sorted(own.keys() - first)
        outer = [path for path in new if not any(path.startswith(f"{other}.") for other in new)]
        if outer:
            shown = ", ".join(outer[:3]) + (f" and {len(outer) - 3} more" if len(outer) > 3 else "")
            notes.append(
                f"{sample.label}: {shown} did not run for the first input, whose layers are shown. To see them, give "
                "this input first."
            )
    return notes


def _of_samples(by_sample: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """The notes of samples, each once: with the names of the samples, unless it is that of all."""
    labels: dict[str, list[str]] = {}
    for label, notes in by_sample:
        for note in dict.fromkeys(notes):
            labels.setdefault(note, []).append(label)
    return [note if len(own) == len(by_sample) else f"{', '.join(own)}: {note}" for note, own in labels.items()]


def _target_names(rows: Sequence[dict[str, Any]], count: int) -> list[str]:
    """The name of each target: its own, or what it is called where it differs by sample."""
    names = []
    for place in range(count):
        own = {row["targets"][place] for row in rows}
        names.append(own.pop() if len(own) == 1 else "predicted" if count == 1 else f"target {place + 1}, by sample")
    return names


def _tabs(results: Sequence[Any] | Mapping[str, Any]) -> list[dict[str, str]]:
    """Title and HTML of each result.

    Raises:
        OptionError: when one does not show itself as HTML.
    """
    given: Iterator[tuple[str, Any]]
    if isinstance(results, Mapping):
        given = iter(results.items())
    else:
        if isinstance(results, (str, Result)) or not isinstance(results, Sequence):
            raise OptionError(f"results must be a list of results, got {type(results).__name__}: results=[...].")
        given = ((words(type(one).__name__), one) for one in results)
    tabs: list[dict[str, str]] = []
    taken = set(VIEWS)
    for name, one in given:
        show = getattr(one, "_repr_html_", None)
        if show is None:
            raise OptionError(f"results: a {type(one).__name__} does not show itself as HTML (no _repr_html_).")
        title = next(text for text in _numbered(str(name)) if text not in taken)
        taken.add(title)
        tabs.append({"title": title, "html": page.framed(show() + _figure(one))})
    return tabs


def _numbered(name: str) -> Iterator[str]:
    """The name, then the name with a number."""
    yield name
    yield from (f"{name} ({number})" for number in itertools.count(2))


def _figure(result: Any) -> str:
    """The figure of a result in full size, as HTML, after its thumbnail; empty where it has none."""
    if not isinstance(result, Result) or "<img" not in result._repr_html_():
        return ""
    picture = result.plot().png()
    return f'<p><img alt="The figure in full size" src="{page.png(picture)}"></p>'
