"""The tables of the benchmark of image maps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from .image_methods import CONTROLS, METHODS

REFERENCE = "relevance z+"
RESAMPLES = 4000
SUITES = {
    "photographs": "EfficientNet-Lite0, photographs and crops of them",
    "digits": "the embedded digit net, sixteen pictures of digits on clutter",
}


def interval(values: torch.Tensor, groups: list[str]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean; whole originals are drawn, for crops of one are alike."""
    names = sorted(set(groups))
    members = torch.tensor([[group == name for group in groups] for name in names], dtype=values.dtype)
    sums, counts = members @ values, members.sum(dim=1)
    drawn = torch.randint(len(names), (RESAMPLES, len(names)), generator=torch.Generator().manual_seed(0))
    means = sums[drawn].sum(dim=1) / counts[drawn].sum(dim=1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def table(suite: str, found: list[dict[str, object]]) -> None:
    """Every method of one suite."""
    groups = [str(case["group"]) for case in found]
    rows = {name: torch.tensor([case["areas"][name] for case in found]).double() for name in {**METHODS, **CONTROLS}}
    gain = {name: (row[:, :2] - row[:, 2:4]).mean(dim=1) for name, row in rows.items()}
    located = next(iter(rows.values())).shape[1] > 5
    print(f"\n## {SUITES[suite]}\n")
    counts = Counter(groups)
    if suite == "photographs":
        print(
            f"{len(found)} pictures: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) + ".\n"
        )
    head = ["insertion - deletion", f"less {REFERENCE}", "insertion mean, blur", "deletion mean, blur", "seconds"]
    head += ["pointing game", "mass"] if located else []
    print(f"| method | {' | '.join(head)} |\n| --- |" + " ---: |" * len(head))
    for name in sorted(rows, key=lambda one: -float(gain[one].mean())):
        low, high = interval(gain[name], groups)
        change = gain[name] - gain[REFERENCE]
        below, above = interval(change, groups)
        means = rows[name].mean(dim=0).tolist()
        cells = [
            f"{float(gain[name].mean()):.3f} [{low:.3f}, {high:.3f}]",
            "" if name == REFERENCE else f"{float(change.mean()):+.3f} [{below:+.3f}, {above:+.3f}]",
            f"{means[0]:.3f}, {means[1]:.3f}",
            f"{means[2]:.3f}, {means[3]:.3f}",
            f"{float(rows[name][:, 4].median()):.2f}",
        ]
        cells += [f"{mean:.2f}" for mean in means[5:]]
        print(f"| {name} | {' | '.join(cells)} |")


def report(folder: Path) -> None:
    """Print the page."""
    print(
        "# Maps of images by insertion and deletion\n\n"
        "Made by `python -m benchmarks.faithfulness`; what it means is in docs/faithfulness.md. Areas of the class's\n"
        "probability in 32 steps, with two fills, the mean colour and a blur of each picture; the first column is the\n"
        "mean insertion less the mean deletion. Brackets: 95 % intervals, paired for differences; whole originals are\n"
        "drawn, because crops of one picture are alike. Seconds: median on one core."
    )
    for suite in SUITES:
        found = [torch.load(path, weights_only=True) for path in sorted(folder.glob(f"{suite}*.pt"))]
        done = [case for case in found if set(case["areas"]) >= {*METHODS, *CONTROLS}]
        if done:
            table(suite, done)
