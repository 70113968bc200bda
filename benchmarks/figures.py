"""Every figure from trained models, as it is, as a reader with deuteranopia sees it, and printed in gray.

python -m benchmarks.figures OUT [NAME ...]    (some minutes on one core)

OUT gets, for each figure, a sheet of both widths of a paper by the three ways to see it, and the seconds that drawing
took on the standard output. With names, only the figures that begin with them are drawn.
"""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from layerlens.plotting import Plot

from .figure_examples import examples

Array = np.ndarray[Any, Any]

DPI: Final = 130
GAP: Final = 12
DEUTERANOPIA: Final = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
"""Of linear RGB: Machado, Oliveira and Fernandes 2009, table 1, severity 1."""
LUMINANCE: Final = np.array([0.2126, 0.7152, 0.0722])
"""Of linear RGB: ITU-R BT.709."""


def linear(colors: Array) -> Array:
    """SRGB 0..1 to linear RGB."""
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def encoded(light: Array) -> Array:
    """Linear RGB to sRGB 0..1."""
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def deuteranopia(colors: Array) -> Array:
    """What a reader without middle cones sees of sRGB `(..., 3)`."""
    return encoded(linear(colors) @ DEUTERANOPIA.T)


def gray(colors: Array) -> Array:
    """The same luminance without color, sRGB `(..., 3)`."""
    return np.repeat(encoded(linear(colors) @ LUMINANCE)[..., None], 3, axis=-1)


def seen(plot: Plot) -> list[Array]:
    """The figure as it is, with deuteranopia, and in gray: `(height, width, 3)` each."""
    colors = np.asarray(Image.open(io.BytesIO(plot.png(DPI))).convert("RGB")) / 255
    return [colors, deuteranopia(colors), gray(colors)]


def sheet(rows: list[list[Array]]) -> Image.Image:
    """Pictures in rows, on a faint ground that shows where each ends."""
    high = sum(max(len(one) for one in row) + GAP for row in rows) + GAP
    wide = max(sum(one.shape[1] + GAP for one in row) for row in rows) + GAP
    whole = np.full((high, wide, 3), 0.85)
    top = GAP
    for row in rows:
        left = GAP
        for one in row:
            whole[top : top + len(one), left : left + one.shape[1]] = one
            left += one.shape[1] + GAP
        top += max(len(one) for one in row) + GAP
    return Image.fromarray((255 * whole).round().astype(np.uint8))


def main(out: Path, wanted: list[str]) -> None:
    """Draw the figures and write the sheets."""
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in examples().items():
        if wanted and not name.startswith(tuple(wanted)):
            continue
        rows, seconds = [], 0.0
        for width in ("column", "page"):
            start = time.perf_counter()
            rows.append(seen(draw(width=width)))
            seconds += time.perf_counter() - start
        sheet(rows).save(out / f"{re.sub('[^a-z_]+', '-', name.lower()).strip('-')}.png")
        print(f"{name:32} {seconds:5.1f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
