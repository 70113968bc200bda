"""The tables of the benchmark of image maps, in benchmarks/faithfulness.md and docs/faithfulness.md."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from layerlens.demo import efficientnet, embedded
from layerlens.results import Leaderboard

from .image_figures import CONTROLS, CURVES, DIGITS, PHOTOGRAPHS, REFERENCE, SHOWN, best, shown_board
from .image_numbers import GAIN, LOCATED, PRICE, Case, board, place

TABLES = Path(__file__).with_name("faithfulness.md")
PAGE = Path(__file__).parents[1] / "docs" / "faithfulness.md"
TITLES = {
    "photographs": "EfficientNet-Lite0, photographs and crops of them",
    "digits": "the embedded digit net, sixteen pictures of digits on clutter",
}
ON_PAGE = (
    "gamma .05, 8 noisy copies, and rise 50, mean rank", "z+ and rise 50, mean rank", "relevance z+",
    "relevance gamma .05, 8 noisy copies", "integrated_gradients, blur", "rise, 200 masks", "grad_cam", "deep_lift",
    "smooth_grad, absolute", "control: Sobel edges", "integrated_gradients, zero", "occlusion",
    "rise as published, 200 masks", "control: centre", "gradient", "control: random", "guided_backprop",
)  # fmt: skip
"""The rows of the page; all are in benchmarks/faithfulness.md."""


def write(numbers: dict[str, list[Case]]) -> None:
    """Write the tables, and what is generated in the page."""
    TABLES.write_text(tables(numbers))
    PAGE.write_text(fill_in(PAGE.read_text(), blocks(numbers)))


def tables(numbers: dict[str, list[Case]]) -> str:
    """The text of benchmarks/faithfulness.md."""
    head = (
        "# Maps of images by insertion and deletion\n\n"
        "Made by `python -m benchmarks.faithfulness --tables` from faithfulness.json; what it means is in\n"
        "docs/faithfulness.md. Areas of the class's probability in 32 steps, with two fills, the mean colour and a\n"
        "blur of each picture; the first column is the mean insertion less the mean deletion. Brackets: 95 %\n"
        "intervals, paired for differences; whole originals are drawn, because crops of one picture are alike.\n"
        "Gradients: the time of a map over that of the gradient of the same picture, median on one core.\n"
    )
    return head + "".join(_table(suite, cases) for suite, cases in numbers.items())


def _table(suite: str, cases: list[Case]) -> str:
    """Every method of one suite."""
    own = board(suite, cases)
    lines = [f"\n## {TITLES[suite]}\n"]
    if own.groups is not None:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(Counter(own.groups).items()))
        lines.append(f"{len(cases)} pictures: {counts}.\n")
    located = [name for name in LOCATED if name in own.metrics]
    head = [GAIN, f"less {REFERENCE}", "insertion mean, blur", "deletion mean, blur", PRICE]
    head += [name.replace("_", " ") for name in located]
    lines.append(f"| method | {' | '.join(head)} |\n| --- |" + " ---: |" * len(head))
    for name in own.methods:
        cells = [mean(own, name), less(own, name)]
        for curve in ("insertion", "deletion"):
            cells.append(", ".join(f"{own.mean(name, f'{curve} ({fill})'):.3f}" for fill in ("mean", "blur")))
        cells += [price(own, name), *(f"{own.mean(name, metric):.2f}" for metric in located)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def mean(own: Leaderboard, name: str) -> str:
    """The mean with its interval."""
    low, high = own.interval(name)
    return f"{own.mean(name):.3f} [{low:.3f}, {high:.3f}]".replace("-0.000", "0.000")


def less(own: Leaderboard, name: str) -> str:
    """The difference to the reference with its interval."""
    change, low, high = own.difference(name, REFERENCE)
    return "" if name == REFERENCE else f"{change:+.3f} [{low:+.3f}, {high:+.3f}]"


def price(own: Leaderboard, name: str) -> str:
    """The time in gradients."""
    times = float(own.of(name, PRICE).median())
    return f"{times:.0f}" if times >= 9.5 else f"{times:.1f}"


def blocks(numbers: dict[str, list[Case]]) -> dict[str, str]:
    """What is generated in the page, by the names of its places."""
    photographs, digits = (board(suite, numbers[suite]) for suite in ("photographs", "digits"))
    rows = ["| method | photographs | less z+ | digits | gradients |", "| --- | ---: | ---: | ---: | ---: |"]
    for name in sorted(ON_PAGE, key=lambda one: -photographs.mean(one)):
        cells = [mean(photographs, name), less(photographs, name), f"{digits.mean(name):.3f}", price(photographs, name)]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return {
        "table": "\n".join(rows),
        "leaderboard": _picture("leaderboard", _told(photographs, digits)),
        "photographs": _picture("photographs", _maps("photographs", numbers["photographs"])),
        "digits": _picture("digits", _maps("digits", numbers["digits"])),
        "curves": _picture("curves", _curves(numbers["photographs"])),
    }


def _picture(name: str, told: str) -> str:
    return f"![{told}](faithfulness-{name}.png)"


def _told(photographs: Leaderboard, digits: Leaderboard) -> str:
    """The leaderboard in words: the ends of it and the controls, on photographs and on digits."""
    ranked = [name for name in photographs.methods if name not in CONTROLS]
    chosen = [*ranked[:3], *CONTROLS, ranked[-1]]
    rows = "; ".join(f"{name} {photographs.mean(name):.2f}, {digits.mean(name):.2f}" for name in chosen)
    return f"Insertion less deletion of {len(photographs.methods)} methods, on photographs and on digits: {rows}"


def _maps(suite: str, cases: list[Case]) -> str:
    """What stands under the maps, row by row."""
    shown, own = PHOTOGRAPHS if suite == "photographs" else DIGITS, shown_board(suite, cases)
    rows = []
    for row, picture in enumerate(shown):
        values = "; ".join(f"{name} {float(own.of(name)[row]):.2f}" for name in SHOWN.values())
        rows.append(f"{_title(suite, cases[place(cases, picture)])}: {values}")
    return f"Maps of {len(shown)} {suite} by {len(SHOWN)} methods, with insertion less deletion. {'. '.join(rows)}"


def _title(suite: str, case: Case) -> str:
    names = efficientnet.class_names() if suite == "photographs" else embedded.CLASS_NAMES
    return f"{case['picture']}, {names[case['target']]}" if suite == "photographs" else names[case["target"]]


def _curves(cases: list[Case]) -> str:
    """The areas under the curves that are drawn."""
    own = board("photographs", cases, [place(cases, CURVES)])
    rows = []
    for name in best(cases):
        put, taken = (
            sum(float(own.of(name, f"{curve} ({fill})")) for fill in ("mean", "blur")) / 2
            for curve in ("insertion", "deletion")
        )
        rows.append(f"{name} {put:.2f}, {taken:.2f}")
    title = _title("photographs", cases[place(cases, CURVES)])
    return f"The probability while places are put in, and removed ({title}); areas of both: {'; '.join(rows)}"


def fill_in(text: str, generated: dict[str, str]) -> str:
    """The page with its generated parts, between `<!-- generated: name -->` and `<!-- end -->`, made anew.

    Raises:
        ValueError: when a part has no place, or stands in two.
    """
    for name, block in generated.items():
        pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", flags=re.DOTALL)
        text, count = pattern.subn(lambda found, block=block: f"{found[1]}{block}\n{found[2]}", text)
        if count != 1:
            raise ValueError(f"the page has {count} places for {name!r}; it needs one.")
    return text
