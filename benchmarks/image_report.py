"""The stored numbers of the benchmark of image maps, and the tables made of them."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerlens.results.reports.leaderboard import widening

from .image_curves import FILLS, POINTS, gains
from .image_masks import MASKS
from .image_methods import CONTROLS, METHODS, RIVALS
from .image_pictures import NETWORKS, PHOTOGRAPHS, picture_of, tuning
from .picture_packages import PACKAGES

STORED = Path(__file__).with_name("faithfulness.npz")
REFERENCE = "relevance z+"
PRICES = (3, 10, 50, 210, 500)
"""Passes that a method may take."""

RESAMPLES = 10_000
FEWEST = 12
"""Pictures that a row needs to be shown."""

HEAD = """\
# Maps of images by insertion and deletion

Made by `python -m benchmarks.faithfulness`; what it means is in docs/faithfulness.md. Areas of the class's probability
while shares of the places are put in, or removed, with three fills: the mean color, a blur, and what is around the
removed places. The first number is the mean insertion less the mean deletion. ROAD (low is better) is the mean
probability without a tenth, a fifth and two fifths of the places, interpolated; sufficiency (low is better) is its fall
with at most a fifth of the places alone. Brackets: 95 % bootstrap intervals over pictures, paired for differences.
Passes: forward passes, with or without a backward one; cost: time over that of a forward pass. The third of the
photographs on which methods were tuned is left out. Rows are ordered by their difference to relevance z+ on the
pictures on which both were measured.

The photographs come from these packages, and are not part of this one: `python -m benchmarks.picture_packages` fetches
and lists them.
"""

NOTES = {
    "reader": """\
The probability of the letter at the step where it is read. Words of one picture are averaged first, so that intervals
are over pictures. benchmarks/picture_words.csv says where each word is.""",
    "text": """\
The mean score of the detected region, which the detector was trained to be 0 or 1: about .6 for a region, for it is 1
only in the middle of each letter. A word a picture, with as much around it as it is high.""",
    "faces": """\
The probability of a face. The faces are those of scikit-image's `lfw_subset`, from Labeled Faces in the Wild
(Huang et al. 2007): news photographs, of their authors.""",
}
"""What is measured where it is not the probability of a photograph's class. Nothing was tuned for these."""

Table = dict[str, Any]
"""For one network: the names of its pictures and, by method, numbers by picture, NaN where not measured."""


def pack(folder: Path) -> None:
    """Write what was measured into one file."""
    paths = sorted(folder.glob("*.pt"))
    found = [torch.load(path, weights_only=True) for path in paths]
    names = list({**METHODS, **CONTROLS})
    curves = np.full((len(paths), len(names), POINTS), np.nan, dtype=np.float16)
    cost = np.full((len(paths), len(names), 2), np.nan, dtype=np.float32)  # passes, and seconds over those of a pass
    for case, one in enumerate(found):
        for row, name in enumerate(names):
            if name in one["curves"]:
                passes, seconds, unit = one["cost"][name]
                curves[case, row] = one["curves"][name].numpy()
                cost[case, row] = passes, seconds / unit
    ends = np.stack([one["ends"].numpy() for one in found]).astype(np.float32)
    masks = np.full((len(paths), MASKS, 2), np.nan, dtype=np.float32)
    for case, one in enumerate(found):
        masks[case, : len(one["masks"])] = one["masks"].numpy()
    np.savez_compressed(
        STORED,
        cases=np.array([path.stem for path in paths]),
        methods=np.array(names),
        curves=curves,
        cost=cost,
        ends=ends,
        masks=masks,
    )


def unpack(folder: Path) -> None:
    """Write what is stored as the files of `measure`, so that only what is missing will be measured."""
    folder.mkdir(parents=True, exist_ok=True)
    if not STORED.exists():
        return
    with np.load(STORED) as file:
        cases, methods = file["cases"].tolist(), file["methods"].tolist()
        curves, cost, ends, masks = (torch.from_numpy(file[name]) for name in ("curves", "cost", "ends", "masks"))
    for case, place in enumerate(folder / f"{name}.pt" for name in cases):
        have = {name: row for row, name in enumerate(methods) if curves[case, row].isfinite().all()}
        kept = {
            "curves": {name: curves[case, row].float() for name, row in have.items()},
            "cost": {name: [*cost[case, row].double().tolist(), 1.0] for name, row in have.items()},
            "ends": ends[case],
            "masks": masks[case][masks[case].isfinite().all(dim=1)].double(),
        }
        if not place.exists():
            torch.save(kept, place)


def stored(network: str, tuned: bool = False) -> Table:
    """The numbers of one network: of the pictures on which nothing was tuned, or of the others."""
    with np.load(STORED) as file:
        cases, methods = file["cases"].tolist(), file["methods"].tolist()
        head = f"{network}-"
        names = {case: name.removeprefix(head) for case, name in enumerate(cases) if name.startswith(head)}
        of = [case for case, name in names.items() if network not in PHOTOGRAPHS or tuning(name) == tuned]
        curves, ends, cost = (torch.from_numpy(file[name][of]).double() for name in ("curves", "ends", "cost"))
    numbers = gains(curves, ends[:, None].expand(-1, len(methods), -1))
    numbers |= {"passes": cost[..., 0], "cost": cost[..., 1]}
    pictures = [picture_of(network, names[case]) for case in of]
    once = [*dict.fromkeys(pictures)]
    places = [[place for place, name in enumerate(pictures) if name == picture] for picture in once]
    numbers = {
        name: torch.stack([values[each].mean(dim=0) for each in places]) if once else values
        for name, values in numbers.items()
    }
    rows = {
        method: {name: values[:, row] for name, values in numbers.items()}
        for row, method in enumerate(methods)
        if int(numbers["gain"][:, row].isfinite().sum()) >= FEWEST
    }
    return {"pictures": once, "cases": len(of), "rows": rows}


def interval(values: torch.Tensor) -> tuple[float, float, float]:
    """The mean over pictures and its 95 % interval, as in `lens.evaluate`; pictures without the number left out."""
    values = values[values.isfinite()]
    if not len(values):
        return math.nan, math.nan, math.nan
    drawn = torch.randint(len(values), (RESAMPLES, len(values)), generator=torch.Generator().manual_seed(0))
    low, high = values[drawn].mean(dim=1).quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    mean, wide = float(values.mean()), widening(len(values)) if len(values) > 1 else 1.0
    return mean, mean + wide * (low - mean), mean + wide * (high - mean)


def table(network: str) -> None:
    """Every method of one network."""
    found = stored(network)
    rows, pictures = found["rows"], found["pictures"]
    if REFERENCE not in rows:
        return
    print(f"\n## {NETWORKS[network]}\n")
    if network in NOTES:
        print(f"{NOTES[network]}\n")
    if network not in ("digits", "faces"):
        words = f"{found['cases']} words in " if network == "reader" else ""
        counts = Counter(package for name in pictures for package in PACKAGES if name.startswith(f"{package}-"))
        packages = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        print(f"{words}{len(pictures)} pictures: {packages}.\n")
    rivals = [name for name in RIVALS if name in rows]
    head = ["insertion - deletion", *(f"less {name}" for name in rivals)]
    head += [
        f"insertion {', '.join(FILLS)}",
        f"deletion {', '.join(FILLS)}",
        "ROAD",
        "sufficiency",
        "passes",
        "cost",
        "pictures",
    ]
    print(f"| method | {' | '.join(head)} |\n| --- |" + " ---: |" * len(head))
    change = {name: row["gain"] - rows[REFERENCE]["gain"] for name, row in rows.items()}
    for name in sorted(rows, key=lambda one: -float(change[one].nanmean())):
        row = rows[name]
        mean, low, high = interval(row["gain"])
        cells = [f"{mean:.3f} [{low:.3f}, {high:.3f}]"]
        for rival in rivals:
            mean, low, high = interval(row["gain"] - rows[rival]["gain"]) if rival != name else (0.0, 0.0, 0.0)
            cells.append("" if rival == name else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]")
        for curve in ("insertion", "deletion"):
            cells.append(", ".join(f"{float(row[f'{curve} {fill}'].nanmean()):.3f}" for fill in FILLS))
        cells += [f"{float(row[one].nanmean()):.3f}" for one in ("ROAD", "sufficiency")]
        cells += [f"{float(row['passes'].nanmedian()):.0f}", f"{float(row['cost'].nanmedian()):.1f}"]
        cells.append(str(int(row["gain"].isfinite().sum())))
        print(f"| {name} | {' | '.join(cells)} |")


def prices() -> None:
    """For each price the row that is best on the third for tuning, and what it is worth on the others."""
    print("\n## The best map for a price\n")
    print("Chosen on the third of the pictures that is for tuning, over all networks; measured on the others.\n")
    print(f"| passes | network | method | {' | '.join(f'less {name}' for name in RIVALS)} |")
    print("| ---: | --- | --- |" + " ---: |" * len(RIVALS))
    tuned, measured = ({one: stored(one, tuned)["rows"] for one in PHOTOGRAPHS} for tuned in (True, False))
    tuned = {one: rows for one, rows in tuned.items() if REFERENCE in rows}
    for price in PRICES:
        means: dict[str, list[float]] = {}
        for rows in tuned.values():
            for name, row in rows.items():
                if name not in CONTROLS and float(row["passes"].nanmedian()) <= price:
                    change = float((row["gain"] - rows[REFERENCE]["gain"]).nanmean())
                    means.setdefault(name, []).append(change)
        means = {name: each for name, each in means.items() if len(each) == len(tuned)}
        if not means:
            continue
        best = max(means, key=lambda name: float(np.mean(means[name])))
        for network, rows in measured.items():
            if best in rows:
                spans = (interval(rows[best]["gain"] - rows[one]["gain"]) if one in rows else None for one in RIVALS)
                cells = (f"{span[0]:+.3f} [{span[1]:+.3f}, {span[2]:+.3f}]" if span else "" for span in spans)
                print(f"| {price} | {NETWORKS[network]} | {best} | {' | '.join(cells)} |")


def report() -> None:
    """Print the page."""
    print(HEAD)
    for name, package in PACKAGES.items():
        print(f"- {name} {package.version}".rstrip() + f": {package.license}")
    prices()
    for network in NETWORKS:
        table(network)
