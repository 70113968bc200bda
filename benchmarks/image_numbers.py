"""The numbers of the benchmark of image maps, kept sample by sample in faithfulness.json beside this file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from layerlens.results import Leaderboard

from .image_methods import CONTROLS, METHODS

STORE = Path(__file__).with_suffix("").with_name("faithfulness.json")
SUITES = ("photographs", "digits")
FILLS = ("mean", "blur")
AREAS = tuple(f"{curve} ({fill})" for curve in ("insertion", "deletion") for fill in FILLS)
LOCATED = ("pointing_game", "relevance_mass")
"""Only where it is known where the object is."""
GAIN = "insertion - deletion"
PRICE = "gradients"
"""The time of a map over that of the gradient of the same picture."""

Case = dict[str, Any]
"""The picture it comes from, its class, and by method the areas, the seconds, and how well it lies on the object."""


def collect(folder: Path) -> dict[str, list[Case]]:
    """The finished pictures of a folder of `measure`, by suite, in the order of the pictures.

    Raises:
        SystemExit: when a suite has none.
    """
    found: dict[str, list[Case]] = {}
    for suite in SUITES:
        cases = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{suite}*.json"))]
        done = [case for case in cases if set(case["areas"]) >= {*METHODS, *CONTROLS}]
        print(f"{suite}: {len(done)} of {len(cases)} pictures are complete")
        if not done:
            raise SystemExit(f"{folder} holds no finished picture of the {suite}: measure first.")
        names = [*METHODS, *CONTROLS]
        found[suite] = [
            {
                "picture": case["group"],
                "target": case["target"],
                "numbers": {name: [float(f"{value:.5g}") for value in case["areas"][name]] for name in names},
            }
            for case in done
        ]
    return found


def write(found: dict[str, list[Case]]) -> None:
    """Keep the numbers, a line for each method of each picture."""
    STORE.write_text(json.dumps(found, indent=1).replace("\n     ", " ").replace("\n    ]", " ]") + "\n")


def read() -> dict[str, list[Case]]:
    """The numbers that are kept."""
    found: dict[str, list[Case]] = json.loads(STORE.read_text())
    return found


def board(suite: str, cases: list[Case], pictures: list[int] | None = None) -> Leaderboard:
    """The leaderboard of a suite, or of some of its pictures.

    Args:
        suite: its name.
        cases: its numbers.
        pictures: which of the cases, in this order; None takes all.
    """
    chosen = cases if pictures is None else [cases[row] for row in pictures]
    methods = tuple(chosen[0]["numbers"])
    raw = torch.tensor([[case["numbers"][name] for case in chosen] for name in methods], dtype=torch.float64)
    areas, seconds, located = raw[..., :4], raw[..., 4], raw[..., 5:]
    gain = (areas[..., :2] - areas[..., 2:]).mean(dim=-1)
    price = seconds / seconds[methods.index("gradient")]
    values = torch.cat([gain[..., None], areas, price[..., None], located], dim=-1).transpose(1, 2)
    order = gain.mean(dim=1).argsort(descending=True, stable=True).tolist()
    names = [case["picture"] for case in chosen]
    return Leaderboard(
        methods=tuple(methods[row] for row in order),
        metrics=(GAIN, *AREAS, PRICE, *LOCATED[: located.shape[-1]]),
        values=values[order],
        higher=(True, True, True, False, False, False, *[True] * located.shape[-1]),
        controls=tuple(name for name in methods if name in CONTROLS),
        target="the top class" if suite == "photographs" else "the digit",
        settings={"fills": list(FILLS), "steps": 32},
        groups=tuple(names) if len(set(names)) < len(names) else None,
    )


def place(cases: list[Case], picture: str) -> int:
    """The row of a whole picture, which stands before its crops."""
    return [case["picture"] for case in cases].index(picture)
