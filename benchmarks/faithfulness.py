"""Which map of an image is faithful: every kind of method by insertion and deletion, with two fills and controls.

python -m benchmarks.faithfulness measure FOLDER [PART PARTS]    (a minute a picture on one core; can be taken up again)
python -m benchmarks.faithfulness report FOLDER > benchmarks/faithfulness.md
python -m benchmarks.faithfulness pictures                       (docs/faithfulness-*.png, some minutes on one core)

The models are EfficientNet-Lite0, on photographs of installed packages and crops of them that keep its top class, and
the embedded digit net on its sixteen pictures.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import torch

from layerlens.analyzers.faithfulness import deletion, insertion, pointing_game, relevance_mass

from .image_methods import CONTROLS, METHODS
from .image_pictures import digits, photographs

FILLS = ("mean", "blur")
COLUMNS = tuple(f"{curve} {fill}" for curve in ("insertion", "deletion") for fill in FILLS)


def measure(folder: Path, part: int = 0, parts: int = 1) -> None:
    """The four areas and the seconds of every method on every picture, a file a picture; what is there is kept."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder.mkdir(exist_ok=True)
    jobs = [("photographs", *case) for case in photographs()] + [("digits", *case) for case in digits()]
    order = torch.randperm(len(jobs), generator=torch.Generator().manual_seed(0)).tolist()  # a part done is a sample
    for number in order[part::parts]:
        suite, group, model, x, target, mask = jobs[number]
        place = folder / f"{suite}{number}.pt"
        found = torch.load(place, weights_only=True) if place.exists() else {"suite": suite, "group": group}
        areas = found.setdefault("areas", {})
        for name, method in {**METHODS, **CONTROLS}.items():
            if name in areas:
                continue
            start = time.process_time()
            values = method(model, x, target)
            seconds = time.process_time() - start
            row = [
                float(curve(model, x, values, target=target, fill=fill, steps=32).area)
                for curve in (insertion, deletion)
                for fill in FILLS
            ]
            located = [] if mask is None else [float(score(values, mask)) for score in (pointing_game, relevance_mass)]
            areas[name] = [*row, seconds, *located]
            torch.save(found, place)
        print(suite, number, group, file=sys.stderr, flush=True)


if __name__ == "__main__":
    task, *rest = sys.argv[1:]
    if task == "measure":
        measure(Path(rest[0]), *map(int, rest[1:]))
    elif task == "report":
        from .image_report import report

        report(Path(rest[0]))
    else:
        from .image_figures import write

        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        write()
