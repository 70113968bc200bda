"""The pictures of docs/faithfulness.md: maps beside each other, the leaderboard, and the curves of one photograph."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch

from layerlens import plotting
from layerlens.analyzers.faithfulness import deletion, insertion
from layerlens.demo import efficientnet, embedded
from layerlens.plotting import Plot
from layerlens.results import Attribution, FaithfulnessCurve, Leaderboard

from .image_methods import CONTROLS, METHODS
from .image_numbers import FILLS, GAIN, SUITES, board, place
from .image_numbers import Case as Numbers
from .image_pictures import Case, digits, wholes

DOCS = Path(__file__).parents[1] / "docs"
PHOTOGRAPHS = ("chelsea", "coffee", "camera", "rocket")
DIGITS = ("digit 7", "digit 4")
CURVES = "chelsea"
"""The photograph whose curves are drawn."""
BEST = 3
"""How many of the leaderboard have their curves drawn, with the reference and the controls."""
REFERENCE = "relevance z+"

SHOWN = {
    "relevance z+": "relevance z+",
    "relevance gamma .05, 8 noisy copies": "gamma .05, 8 noisy copies",
    "rise, 200 masks": "RISE, 200 masks",
    "integrated_gradients, blur": "integrated gradients, blur",
    "grad_cam": "Grad-CAM",
    "smooth_grad, absolute": "SmoothGrad, absolute",
    "occlusion": "occlusion",
    "control: Sobel edges": "control: Sobel edges",
}
"""The methods whose maps are shown, with the names of the columns."""


def write(numbers: dict[str, list[Numbers]]) -> None:
    """Write every picture."""
    for name, plot, colours in (
        ("leaderboard", leaderboard(numbers), None),
        ("curves", curves(numbers["photographs"]), None),
        ("photographs", grid("photographs", numbers["photographs"]), 256),
        ("digits", grid("digits", numbers["digits"]), 256),
    ):
        path = plot.save(DOCS / f"faithfulness-{name}.png", colours=colours)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", file=sys.stderr, flush=True)


def leaderboard(numbers: dict[str, list[Numbers]]) -> Plot:
    """All methods on photographs and on digits."""
    return plotting.leaderboard([board(suite, numbers[suite]) for suite in SUITES], labels=SUITES)


def shown_cases(suite: str) -> list[Case]:
    """The pictures whose maps are shown."""
    if suite == "photographs":
        known = dict(wholes())
        return [known[name] for name in PHOTOGRAPHS]
    named = {case[0]: case for case in digits()}
    return [named[name] for name in DIGITS]


def shown_board(suite: str, numbers: list[Numbers]) -> Leaderboard:
    """The stored numbers of the pictures whose maps are shown, methods named as their columns."""
    names = PHOTOGRAPHS if suite == "photographs" else DIGITS
    whole = board(suite, numbers, [place(numbers, name) for name in names])
    return dataclasses.replace(whole, methods=tuple(SHOWN.get(name, name) for name in whole.methods))


def grid(suite: str, numbers: list[Numbers]) -> Plot:
    """Maps of some pictures, with what each scored."""
    cases = shown_cases(suite)
    x = torch.cat([case[2] for case in cases])
    with torch.no_grad():
        sure = cases[0][1](x).softmax(dim=1)[range(len(cases)), [case[3] for case in cases]]
    maps = {}
    for method, name in SHOWN.items():
        values = torch.cat([{**METHODS, **CONTROLS}[method](case[1], case[2], case[3]).detach() for case in cases])
        signed = bool((values < 0).any())
        maps[name] = Attribution(values, None, signed, "score", "top class", method, {}, sure, inputs=x)
    names = efficientnet.class_names() if suite == "photographs" else embedded.CLASS_NAMES
    labels = [f"{names[case[3]]}\np = {value:.2f}" for case, value in zip(cases, sure.tolist(), strict=True)]
    return plotting.method_grid(maps, board=shown_board(suite, numbers), labels=labels)


def best(numbers: list[Numbers]) -> list[str]:
    """The methods whose curves are drawn."""
    ranked = [name for name in board("photographs", numbers).methods if name not in CONTROLS]
    return [*dict.fromkeys([*ranked[:BEST], REFERENCE]), *CONTROLS]


def curves(numbers: list[Numbers]) -> Plot:
    """Insertion and deletion of one photograph, each the mean of two fills, with insertion - deletion in the legend."""
    _, model, x, target, _ = dict(wholes())[CURVES]
    names = best(numbers)
    own = board("photographs", numbers, [place(numbers, CURVES)])
    labels = {name: f"{name}: {float(own.of(name, GAIN)):.2f}" for name in names}
    found, panels, shown = [], [], []
    for name in names:
        values = {**METHODS, **CONTROLS}[name](model, x, target)
        for curve in (insertion, deletion):
            parts = [curve(model, x, values, target=target, fill=fill, steps=32) for fill in FILLS]
            found.append(_mean(parts))
            panels.append(curve.__name__)
            shown.append(labels[name])
    title = f"{CURVES}: {efficientnet.class_names()[target]}; each the mean of two fills, the mean colour and a blur"
    return plotting.faithfulness_curve(
        found, labels=shown, panels=panels, controls=[labels[name] for name in CONTROLS], title=title
    )


def _mean(curves: list[FaithfulnessCurve]) -> FaithfulnessCurve:
    scores = torch.stack([one.scores for one in curves]).mean(dim=0)
    return dataclasses.replace(curves[0], scores=scores, fill=" and ".join(one.fill for one in curves))
