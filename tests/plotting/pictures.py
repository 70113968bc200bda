"""The figures whose pictures lie in `baseline/`, and how two pictures are compared.

After an intended change of the look, or of the matplotlib in constraints.txt, make the pictures anew and look at them:

    python -m pytest tests/plotting/test_pictures.py --make-pictures
"""

import io
import pathlib
import re

import matplotlib
import numpy as np
import torch
from PIL import Image

from layerlens import plotting
from layerlens.demo import embedded
from layerlens.results import Attribution, Matrix

from .helpers import attribution, curve, history, ledger, maps, profile, random, ranking, table

FOLDER = pathlib.Path(__file__).parent / "baseline"
CONSTRAINTS = pathlib.Path(__file__).parents[2] / "constraints.txt"
DPI = 60
MOST_BYTES = 30_000
TOLERANCE = 2.0
"""Root mean square of the difference, of 255; a word or a line that is lost makes more."""


def pinned():
    """The matplotlib that drew the pictures."""
    return re.search(r"^matplotlib==([\d.]+)", CONSTRAINTS.read_text(), re.M)[1]


def other_version():
    """Why pictures cannot be compared here; empty where they can."""
    if matplotlib.__version__ == pinned():
        return ""
    return f"the pictures are those of matplotlib {pinned()}, and this is {matplotlib.__version__}"


def digits():
    """Gradient x input of the embedded digit network, which is the same on every machine to many digits."""
    x = embedded.sample_pictures()[0][:3].requires_grad_()
    model = embedded.load_digit_net()
    score = model(x).max(dim=1).values
    (gradient,) = torch.autograd.grad(score.sum(), x)
    return Attribution(
        (gradient * x).detach(), ("batch", "channel", "height", "width"), True, "score", "the predicted class",
        "gradient x input", {}, score.detach(), inputs=x.detach(),
    )  # fmt: skip


def words():
    text = ["[CLS]", "the", "film", "was", "not", "bad", ",", "only", "long", "[SEP]"]
    return attribution(1, len(text), tokens=[text])


def cka():
    values = random(12, 40).double() @ random(40, 12, seed=1).double() / 40
    names = tuple(f"blocks.{row}" for row in range(12))
    return Matrix("effect", names, names, values, ("layer", "layer"), "nat", True, "patching", {})


PICTURES = {
    "heatmap": lambda: plotting.heatmap(digits(), 0),
    "overlay_grid": lambda: plotting.overlay_grid(digits(), width=4),
    "activation_mosaic": lambda: plotting.activation_mosaic(maps(1, 9, 5, 5), count=5, width=4),
    "tokens": lambda: plotting.tokens(words(), width="column"),
    "timeseries": lambda: plotting.timeseries(attribution(1, 60, 3, inputs=random(1, 60, 3)), width="column"),
    "layer_profile": lambda: plotting.layer_profile(profile(12)),
    "relevance_flow": lambda: plotting.relevance_flow(ledger(12), width=5),
    "matrix": lambda: plotting.matrix(cka()),
    "sensitivity": lambda: plotting.sensitivity(ranking(10, interval=True)),
    "curves": lambda: plotting.curves(curve(("PGD", "FGSM")), scale="symlog"),
    "training": lambda: plotting.training(history(12, 9), width="column"),
    "model_map": lambda: plotting.model_map(table(12), width="column"),
}


def png(name):
    """A figure as it is compared."""
    return PICTURES[name]().png(DPI)


def difference(first, second):
    """Root mean square over pixels and colors, of 255; infinite where the sizes differ."""
    a, b = (np.asarray(Image.open(io.BytesIO(one)).convert("RGB"), dtype=np.float64) for one in (first, second))
    return float(np.sqrt(((a - b) ** 2).mean())) if a.shape == b.shape else float("inf")


def make():
    """Write all pictures anew."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        draw().save(FOLDER / f"{name}.png", DPI)
