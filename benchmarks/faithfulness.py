"""Which map of an image is faithful: every kind of method by insertion, deletion, ROAD and sufficiency, with controls.

python -m benchmarks.faithfulness measure FOLDER [PART PARTS]    (a night on two cores; goes on from what is stored)
python -m benchmarks.faithfulness pack FOLDER                    (writes benchmarks/faithfulness.npz)
python -m benchmarks.faithfulness report > benchmarks/faithfulness.md
python -m benchmarks.faithfulness pictures                       (docs/faithfulness-*.png, some minutes on one core)

The models are EfficientNet-Lite0, Lite1 and Lite2 on the photographs of `benchmarks.picture_packages`, the embedded
digit net on its sixteen pictures, and a text reader, a text detector and a face detector on words of such photographs
and on faces (`benchmarks.image_words`), with weights of packages. A new row is a line of `METHODS`: `measure` takes
what is missing, and nothing else. The rows of SHAP need its package; without it they are left out.
"""

from __future__ import annotations

import importlib.util
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .image_curves import Curves
from .image_masks import masked
from .image_methods import CANDIDATES, CONTROLS, DEFAULTS, FIRST, METHODS, PLAIN, RIVALS, SECOND, Map
from .image_pictures import Job, jobs
from .image_report import pack, report, unpack

ORDER: list[tuple[str, tuple[str, ...] | None]] = [
    (network, names) for network in ("lite0", "lite1", "lite2") for names in (FIRST, RIVALS, CANDIDATES, SECOND)
]
ORDER += [(network, names) for network in ("faces", "reader", "text") for names in (FIRST, RIVALS, DEFAULTS)]
ORDER += [("digits", PLAIN), ("lite0", None)]
"""What is measured, in this order: the table is useful at any time. Only Lite0 and the digits get every row."""

FORWARD = 8
"""Pictures in the pass whose time is the unit of cost."""


def rows(names: tuple[str, ...] | None = None) -> dict[str, Map]:
    """The methods that can be measured here, of some names or all."""
    every = {**METHODS, **CONTROLS}
    here = importlib.util.find_spec("shap") is not None
    return {
        name: row for name, row in every.items() if (names is None or name in names) and (here or "SHAP" not in name)
    }


def measure(folder: Path, part: int = 0, parts: int = 1) -> None:
    """Measure every method on every picture, a file a picture; what is there is kept."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    unpack(folder)
    for network, names in ORDER:
        for job in jobs(network, part, parts):
            for name in _measured(folder, job, rows(names)):
                print(network, job.name, name, file=sys.stderr, flush=True)


def _measured(folder: Path, job: Job, methods: dict[str, Map]) -> Iterator[str]:
    """Measure what is missing of one picture; yields the names."""
    place = folder / f"{job.network}-{job.name}.pt"
    found: dict[str, Any] = torch.load(place, weights_only=True) if place.exists() else {"curves": {}, "cost": {}}
    missing = {name: method for name, method in methods.items() if name not in found["curves"]}
    if not missing:
        return
    model, x, target = job.case()
    curves, masks = Curves(model, x, target), masked(model, x, target)
    masks.scores = found.get("masks", masks.scores)
    with torch.inference_mode():
        start = time.process_time()
        model(x.expand(FORWARD, -1, -1, -1))
        unit = (time.process_time() - start) / FORWARD
    passes: list[int] = []
    hook = model.register_forward_hook(lambda _module, _inputs, output: passes.append(len(output)))
    try:
        for name, method in missing.items():
            passes.clear()
            masks.asked, masks.seconds = 0, 0.0
            start = time.process_time()
            values = method(model, x, target)
            seconds, count = time.process_time() - start, sum(passes)
            found["curves"][name] = curves(values).float()
            found["cost"][name] = [count + masks.asked, seconds - masks.seconds + masks.asked * unit, unit]
            found |= {"ends": curves.ends, "masks": masks.scores}
            torch.save(found, place.with_suffix(".part"))
            place.with_suffix(".part").replace(place)  # whole, or not at all
            yield name
    finally:
        hook.remove()


if __name__ == "__main__":
    task, *rest = sys.argv[1:]
    if task == "measure":
        measure(Path(rest[0]), *map(int, rest[1:]))
    elif task == "pack":
        pack(Path(rest[0]))
    elif task == "report":
        report()
    else:
        from .image_figures import write

        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        write()
