"""The pictures of docs/faithfulness.md: maps beside each other with what they score, the leaderboard, and two curves.

python -m benchmarks.faithfulness pictures    (two or three minutes on one core)

The leaderboard is drawn from benchmarks/faithfulness_crops.md, what is measured on single pictures is measured anew.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import torch
from PIL import Image
from skimage import data

from layerlens import plotting
from layerlens.analyzers.faithfulness import deletion, insertion
from layerlens.demo import efficientnet, embedded
from layerlens.plotting import Plot
from layerlens.results import Attribution, FaithfulnessCurve, Leaderboard

from .image_methods import CONTROLS, METHODS
from .image_pictures import NETWORKS, fitted, jobs, load_model

TABLES = Path(__file__).with_name("faithfulness_crops.md")
DOCS = Path(__file__).parents[1] / "docs"
FILLS = ("mean", "blur")
PICTURES = {"photographs": ("chelsea", "coffee", "camera", "rocket"), "digits": ("digit-7", "digit-4")}
"""The pictures whose maps are shown: photographs of scikit-image, and digits."""
SUITES = {"photographs": NETWORKS["lite0"], "digits": NETWORKS["digits"].split(",")[0]}
"""The beginning of the title of each table."""
CURVES = ("relevance z+", "rise, 200 masks", "grad_cam", *CONTROLS)
"""The methods whose curves over one photograph are drawn."""

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

Case = tuple[torch.nn.Module, torch.Tensor, int]
"""A model, its input (1, ...), and the class."""

Row = tuple[float, float, float]
"""A mean and its 95 % interval."""


def write() -> None:
    """Write every picture, and print what each map scored, for the texts beside them."""
    for name, plot, colors in (
        ("leaderboard", leaderboard(), None),
        ("curves", curves(), None),
        ("photographs", grid("photographs"), 256),
        ("digits", grid("digits"), 256),
    ):
        path = plot.save(DOCS / f"faithfulness-{name}.png", colors=colors)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", file=sys.stderr, flush=True)


def rows(title: str) -> dict[str, Row]:
    """What benchmarks/faithfulness_crops.md says of one suite, by method."""
    text = TABLES.read_text()
    table = text[text.index(f"## {title}") :].split("\n## ")[0]
    found = re.findall(r"^\| ([^|]+) \| (-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]", table, flags=re.M)
    return {name: (float(mean), float(low), float(high)) for name, mean, low, high in found}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Published(Leaderboard):
    """A leaderboard as its table tells it: means and intervals, and not the samples behind them."""

    spans: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    counted: str = ""

    def interval(self, method: str, metric: str | None = None) -> tuple[float, float]:
        """The interval of the table."""
        return self.spans[method]

    @property
    def samples(self) -> str:
        """How many pictures there were."""
        return self.counted


def published(suite: str) -> Published:
    """What benchmarks/faithfulness_crops.md says of a suite."""
    found = rows(SUITES[suite])
    if suite == "photographs":
        (total, each), *_ = re.findall(r"^(\d+) pictures: (.*)\.$", TABLES.read_text(), flags=re.M)
        counted = f"{total} from {len(each.split(','))} pictures"
    else:
        counted = f"{len(list(jobs('digits')))} pictures"
    return Published(
        methods=tuple(found),
        metrics=("insertion - deletion",),
        values=torch.tensor([mean for mean, _, _ in found.values()], dtype=torch.float64).reshape(-1, 1, 1),
        higher=(True,),
        controls=tuple(name for name in found if name in CONTROLS),
        target="top class",
        settings={"fills": list(FILLS), "steps": 32},
        spans={name: (low, high) for name, (_, low, high) in found.items()},
        counted=counted,
    )


def leaderboard() -> Plot:
    """All methods on photographs, and on digits in the same order."""
    return plotting.leaderboard([published(suite) for suite in SUITES], labels=tuple(SUITES))


def gain(case: Case, values: torch.Tensor) -> float:
    """Insertion less deletion, each the mean of two fills."""
    model, x, target = case
    areas = [
        sum(float(curve(model, x, values, target=target, fill=fill, steps=32).area) for fill in FILLS) / len(FILLS)
        for curve in (insertion, deletion)
    ]
    return areas[0] - areas[1]


def cases_of(suite: str) -> list[Case]:
    """The pictures whose maps are shown."""
    if suite == "digits":
        known = {job.name: job for job in jobs(suite)}
        return [known[name].case() for name in PICTURES[suite]]
    model = load_model()
    found = [fitted(Image.fromarray(getattr(data, name)())) for name in PICTURES[suite]]
    with torch.no_grad():
        return [(model, x, int(model(x).argmax())) for x in found]


def grid(suite: str) -> Plot:
    """Maps of some pictures, with what each scored."""
    cases = cases_of(suite)
    x = torch.cat([case[1] for case in cases])
    with torch.no_grad():
        sure = cases[0][0](x).softmax(dim=1)[range(len(cases)), [case[2] for case in cases]]
    maps, scores = {}, []
    for method, name in SHOWN.items():
        found = [{**METHODS, **CONTROLS}[method](*case).detach() for case in cases]
        scores.append([gain(case, values) for case, values in zip(cases, found, strict=True)])
        values = torch.cat(found)
        signed = bool((values < 0).any())
        maps[name] = Attribution(values, None, signed, "score", "top class", method, {}, sure, inputs=x)
        print(suite, name, [round(score, 2) for score in scores[-1]], file=sys.stderr, flush=True)
    board = Leaderboard(
        methods=tuple(SHOWN.values()),
        metrics=("insertion - deletion",),
        values=torch.tensor(scores, dtype=torch.float64).unsqueeze(1),
        higher=(True,),
        controls=("control: Sobel edges",),
        target="top class",
        settings={"fills": list(FILLS), "steps": 32},
    )
    names = efficientnet.class_names() if suite == "photographs" else embedded.CLASS_NAMES
    labels = [f"{names[case[2]]}\np = {value:.2f}" for case, value in zip(cases, sure.tolist(), strict=True)]
    return plotting.method_grid(maps, board=board, labels=labels)


def curves() -> Plot:
    """Insertion and deletion of one photograph, each the mean of two fills, with insertion - deletion in the legend."""
    case = cases_of("photographs")[0]
    model, x, target = case
    found, panels, shown = [], [], {}
    for name in CURVES:
        values = {**METHODS, **CONTROLS}[name](model, x, target)
        shown[name] = f"{name}: {gain(case, values):.2f}"
        for curve in (insertion, deletion):
            parts = [curve(model, x, values, target=target, fill=fill, steps=32) for fill in FILLS]
            found.append(_mean(parts))
            panels.append(curve.__name__)
    print("curves", list(shown.values()), file=sys.stderr, flush=True)
    title = f"{efficientnet.class_names()[target]}; each the mean of two fills, the mean colour and a blur"
    return plotting.faithfulness_curve(
        found,
        labels=[label for label in shown.values() for _ in (insertion, deletion)],
        panels=panels,
        controls=[shown[name] for name in CONTROLS],
        title=title,
    )


def _mean(curves: list[FaithfulnessCurve]) -> FaithfulnessCurve:
    scores = torch.stack([one.scores for one in curves]).mean(dim=0)
    return dataclasses.replace(curves[0], scores=scores, fill=" and ".join(one.fill for one in curves))
