"""Which map of an image is faithful: every kind of method by insertion and deletion, with two fills and controls.

python -m benchmarks.faithfulness --measure FOLDER [--part 0 2]   (one or two minutes a picture on one core; a file for
                              each picture, so that it can be taken up again, or split; then faithfulness.json)
python -m benchmarks.faithfulness --tables      (faithfulness.md and what is generated in docs/faithfulness.md)
python -m benchmarks.faithfulness --pictures    (docs/faithfulness-*.png, two minutes on one core)

The models are EfficientNet-Lite0, on photographs of installed packages and crops of them that keep its top class, and
the embedded digit net on its sixteen pictures. Tables and pictures are made from faithfulness.json, which holds every
number of every picture.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import torch

from layerlens.analyzers.faithfulness import deletion, insertion, pointing_game, relevance_mass

from . import image_figures, image_numbers, image_report
from .image_methods import CONTROLS, METHODS
from .image_numbers import FILLS
from .image_pictures import Case, digits, photographs


def areas(model: torch.nn.Module, x: torch.Tensor, target: int, values: torch.Tensor) -> list[float]:
    """The areas under insertion and deletion of one map, with each fill, in the order of `image_numbers.AREAS`."""
    return [
        float(curve(model, x, values, target=target, fill=fill, steps=32).area)
        for curve in (insertion, deletion)
        for fill in FILLS
    ]


def measure(folder: Path, part: int = 0, parts: int = 1) -> None:
    """Every number of every method on every picture, a file a picture; what is there is kept."""
    folder.mkdir(exist_ok=True)
    jobs: list[tuple[str, Case]] = [("photographs", case) for case in photographs()]
    jobs += [("digits", case) for case in digits()]
    order = torch.randperm(len(jobs), generator=torch.Generator().manual_seed(0)).tolist()  # a part done is a sample
    for number in order[part::parts]:
        suite, (group, model, x, target, mask) = jobs[number]
        place = folder / f"{suite}{number:02d}.json"
        found = json.loads(place.read_text()) if place.exists() else {"group": group, "target": target, "areas": {}}
        for name, method in {**METHODS, **CONTROLS}.items():
            if name in found["areas"]:
                continue
            start = time.process_time()
            values = method(model, x, target)
            seconds = time.process_time() - start
            located = [] if mask is None else [float(score(values, mask)) for score in (pointing_game, relevance_mass)]
            found["areas"][name] = [*areas(model, x, target, values), seconds, *located]
            place.write_text(json.dumps(found))
        print(suite, number, group, file=sys.stderr, flush=True)


def main() -> None:
    """Do what the arguments say, in the order in which each needs the one before."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faithfulness")
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="measure what is not yet in the folder")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("PART", "PARTS"), help="one of several")
    parser.add_argument("--tables", action="store_true", help="write benchmarks/faithfulness.md and the page's tables")
    parser.add_argument("--pictures", action="store_true", help="write docs/faithfulness-*.png")
    asked = parser.parse_args()
    if asked.measure is None and not asked.tables and not asked.pictures:
        parser.error("give --measure FOLDER, --tables or --pictures")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if asked.measure is not None:
        measure(asked.measure, *asked.part)
        if asked.part[1] == 1:
            image_numbers.write(image_numbers.collect(asked.measure))
    if asked.tables:
        image_report.write(image_numbers.read())
    if asked.pictures:
        image_figures.write(image_numbers.read())


if __name__ == "__main__":
    main()
