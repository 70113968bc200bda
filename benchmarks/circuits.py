"""Circuits: how much of a score do the parts carry that each way to score them calls the best?

python -m benchmarks.circuits FOLDER [EXPERIMENT ...]   (about 40 minutes of one core; can be stopped and resumed)

Measures what FOLDER does not hold yet, keeps the numbers of every pair in benchmarks/circuits.npz, and writes
benchmarks/circuits.md. With names of experiments it only measures these, so that several processes can share the work;
"report" packs and writes what there is.
The models are SmolLM2-135M-Instruct, EfficientNet-Lite0 and a text reader with LSTMs (requirements-models.txt).
"""

from __future__ import annotations

import functools
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerlens import Lens
from layerlens.files import whole
from tests.real_models import smollm2

from .circuit_cost import measure_cost
from .circuit_curves import Curves, ordered
from .circuit_heads import measure_heads
from .circuit_ranks import measure_ranks
from .circuit_report import report
from .circuit_subjects import language, letters, pictures
from .circuit_tasks import solved, tasks
from .circuit_ways import EAP, EXACT, OURS, RANDOM, WAYS, Subject

PACKED = Path(__file__).with_name("circuits.npz")
TASKS = ("names", "greater-than", "agreement", "capitals", "copying")
PAIRS, SCORED, EXACTLY, OTHERS = 100, 40, 4, 20
"""Pairs of a task; those that parts are scored on; those of exact patching; held-out ones of means and zeros."""
SPARE = (OURS, "attribution patching", EAP, "magnitude", RANDOM)
"""The ways that are measured with means and zeros as well."""


@functools.cache
def language_model() -> tuple[Lens, Any]:
    """Return SmolLM2 and its tokenizer."""
    model, tokenizer = smollm2()
    return Lens(model, tokenizer=tokenizer), tokenizer


def cut(name: str, start: int, stop: int) -> Subject:
    """Return some of the pairs of an experiment."""
    return _every(name)(start, stop)


@functools.cache
def _every(name: str) -> Any:
    if name in TASKS:
        lens, tokenizer = language_model()
        pairs = solved(lens, tokenizer, tasks()[name], PAIRS)
        return lambda start, stop: language(lens, pairs.rows(start, stop))
    return {"pictures": pictures, "letters": letters}[name]


SIZES = dict.fromkeys(TASKS, (PAIRS, SCORED, EXACTLY)) | {
    "names": (PAIRS, SCORED, 0), "greater-than": (PAIRS, SCORED, 0), "pictures": (40, 16, 1), "letters": (60, 20, 2)
}  # fmt: skip
"""Experiment -> its pairs, those that parts are scored on, and those of exact patching, which long texts do not get."""
KEPT = dict.fromkeys(TASKS, (3, 9, 30, 90, 180)) | {
    "pictures": (7, 20, 66, 200, 400), "letters": (10, 30, 100, 300, 600)
}  # fmt: skip
"""Numbers of parts that are kept: 1, 3, 10, 30 and 60 % of them."""


def scores(folder: Path, name: str) -> dict[str, dict[str, float]]:
    """Return way -> part -> its score; what the folder holds is not computed again."""
    path = folder / f"{name}.json"
    found: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    _, scored, few = SIZES[name]
    for way, (_, function) in WAYS.items():
        if way not in found and (few or way != EXACT):
            begun = time.perf_counter()
            found[way] = function(cut(name, 0, few if way == EXACT else scored))
            with whole(path) as file:
                file.write(json.dumps(found).encode())
            print(f"{name}: scored by {way} ({time.perf_counter() - begun:.0f} s)", flush=True)
    return found


def areas(folder: Path, name: str, ablation: str) -> None:
    """Measure the curves of every way; what the folder holds is not measured again."""
    path = folder / f"{name} {ablation}.npz"
    found = dict(np.load(path)) if path.exists() else {}
    ranked = scores(folder, name)
    wanted = [way for way in ranked if (ablation == "resample" or way in SPARE) and f"{way}/kept" not in found]
    if not wanted:
        return
    pairs, scored, _ = SIZES[name]
    stop = pairs if ablation == "resample" else min(pairs, scored + OTHERS)
    curves = Curves(cut(name, scored, stop), ablation, cut(name, 0, scored))
    for way in wanted:
        removed = KEPT[name][:3:2] if ablation == "resample" else ()
        rows = curves.areas(ordered(way, ranked[way]), KEPT[name], removed)
        found |= {f"{way}/{kind}": values for kind, values in rows.items()}
        save(path, found)
        print(f"{name} {ablation}: {way} {rows['kept'].mean():.3f}", flush=True)


def save(path: Path, found: dict[str, np.ndarray]) -> None:
    """Write arrays into one file, whole or not at all."""
    with whole(path) as file:
        np.savez_compressed(file, **found)


def other(folder: Path, name: str) -> None:
    """Measure induction heads, rank correlations, or the cost."""
    path = folder / f"{name}.npz"
    if path.exists():
        return
    if name == "heads":
        save(path, measure_heads(language_model()[0], 60, 20))
    elif name == "cost":
        save(path, measure_cost(*language_model()))
    elif name == "ranks SmolLM2":
        parts = [measure_ranks(cut(task, 0, 8), "attn", 2) for task in ("names", "capitals")]
        save(path, {way: np.concatenate([one[way] for one in parts]) for way in parts[0]})
    else:
        save(path, measure_ranks(cut(name.removeprefix("ranks "), 0, 6), "auto", 8))


def measure(folder: Path, name: str) -> None:
    """Measure one experiment."""
    if name in SIZES:
        for ablation in ("resample", "mean", "zero"):
            areas(folder, name, ablation)
    else:
        other(folder, name)


EXPERIMENTS = (*SIZES, "heads", "ranks SmolLM2", "ranks pictures", "ranks letters", "cost")


def main(folder: str, *names: str) -> None:
    """Measure, pack and report."""
    torch.set_num_threads(1)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in names or EXPERIMENTS:
        if name != "report":
            measure(Path(folder), name)
    if not names or "report" in names:
        files = sorted(Path(folder).glob("*.npz"))
        packed = {f"{file.stem}/{key}": values for file in files for key, values in np.load(file).items()}
        for path in sorted(Path(folder).glob("*.json")):
            for way, found in json.loads(path.read_text()).items():
                ordered_by_name = [found[name] for name in sorted(found)]
                packed[f"{path.stem} scores/{way}"] = np.array(ordered_by_name, dtype=np.float32)
        save(PACKED, packed)
        PACKED.with_suffix(".md").write_text(report(dict(np.load(PACKED))))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*ledger does not close.*")
    warnings.filterwarnings("ignore", message=".*left out.*")
    main(*sys.argv[1:])
