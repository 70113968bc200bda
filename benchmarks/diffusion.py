"""Which word made which part of a picture: maps of words, scored by what changing the word changes.

python -m benchmarks.diffusion [--fresh]    (about 3 minutes on one core)

It measures the prompts that benchmarks/diffusion.npz lacks, can be stopped and resumed, and writes
benchmarks/diffusion.md; `--fresh` measures all of them again.

The model is the small diffusion model of `layerlens.demo`. Truth: a word is replaced by each other word of its kind
(color, digit, relation), the picture is drawn again from the same noise, and the change of every pixel is measured. A
map of that word is compared with it over a grid of cells.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

import layerlens
from layerlens.demo.digit_diffusion import (
    COLORS,
    RELATIONS,
    WORDS,
    DigitDiffusion,
    load_digit_diffusion,
    sample,
    tokens,
)
from layerlens.demo.embedded import CLASS_NAMES
from layerlens.files import whole
from layerlens.progress import track

STORED = Path(__file__).with_suffix(".npz")
STEPS = 6
GRID = 4
TOP = 0.25
"""Share of the cells that count as changed, for the AUC."""


HEAD = """# Maps of words of a diffusion model against what another word changes

The small diffusion model of `layerlens.demo`, {} prompts, each with a noise of its own. Made by
`python -m benchmarks.diffusion` from the numbers of each prompt in `benchmarks/diffusion.npz`; what
it means is in docs/diffusion.md.

Rank correlation and AUC (the most changed quarter of the cells against the rest) of the map of each color, digit and
relation with the mean change of the pixels when it is replaced by each other one, at the same noise, on 4 x 4 cells,
six steps. "One word against the other": rank correlation of the difference between the maps of two words of a kind,
each over its sum, with that of the changes. Brackets: 95 % intervals by bootstrap over prompts.

"""


def prompts(count: int) -> list[str]:
    """Draw prompts with two different colors and digits."""
    random = torch.Generator().manual_seed(0)
    found = []
    for k in range(count):
        colors = [list(COLORS)[i] for i in torch.randperm(len(COLORS), generator=random)[:2]]
        digits = [CLASS_NAMES[i] for i in torch.randperm(10, generator=random)[:2]]
        found.append(f"a {colors[0]} {digits[0]} {RELATIONS[k % 4]} a {colors[1]} {digits[1]}")
    return found


def others(words: list[str], place: int) -> list[str]:
    """The prompts with another word of the same kind in one place."""
    kinds = [
        list(COLORS),
        list(CLASS_NAMES),
        [["left", "right"], ["above", "below"]][words[place] in ("above", "below")],
    ]
    kind = next(kind for kind in kinds if words[place] in kind)
    known = {*words} if words[place] in CLASS_NAMES else {words[place]}
    return [" ".join([*words[:place], other, *words[place + 1 :]]) for other in kind if other not in known]


def pooled(change: Tensor) -> Tensor:
    """Changes of pixels (n, 3, 24, 24) as one number per cell, the mean over n: (cells,)."""
    return F.adaptive_avg_pool2d(change.abs().mean(1), GRID).mean(0).flatten()


def attention_maps(model: DigitDiffusion, noise: Tensor, words: Tensor) -> Tensor:
    """Mean attention to each word over heads, steps and layers, upsampled: DAAM, Tang et al. 2023, (8, cells)."""
    layers = [path for path, _ in model.named_modules() if path.endswith("attn2")]
    loop = functools.partial(sample, steps=STEPS)
    record = layerlens.capture(
        model, (noise, words), [f"{path}.to_{one}" for path in layers for one in "qk"], forward=loop
    )
    total = torch.zeros(words.shape[1], GRID * GRID)
    for path in layers:
        heads = model.get_submodule(path).heads
        for q, k in zip(record.calls(f"{path}.to_q"), record.calls(f"{path}.to_k"), strict=True):
            query, key = (one.output[0].unflatten(-1, (heads, -1)).transpose(0, 1) for one in (q, k))
            scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5  # (heads, places, words)
            weights = scores.masked_fill(words[0] == 0, -torch.inf).softmax(-1).mean(0).T
            side = int(weights.shape[1] ** 0.5)
            large = F.interpolate(weights.view(1, -1, side, side), size=(24, 24), mode="bicubic")
            total += F.adaptive_avg_pool2d(large[0], GRID).flatten(1)
    return total


def maps_of(model: DigitDiffusion, noise: Tensor, prompt: str, places: list[int]) -> dict[str, Tensor]:
    """Maps of the words in some places by method, each (places, cells)."""
    ids, loop = tokens(prompt), functools.partial(sample, steps=STEPS)
    maps: dict[str, Tensor] = {}
    found = layerlens.explain_sampling(model, (noise, ids), loop=loop, maps=GRID, layers=(), batch_size=GRID * GRID)
    assert found.maps is not None
    maps["relevance"] = found.maps[0, places].flatten(1).abs()
    maps["cross-attention (DAAM)"] = attention_maps(model, noise, ids)[places]
    with torch.no_grad():
        picture = loop(model, noise, ids)
        without = ids.repeat(len(places), 1)
        without[torch.arange(len(places)), places] = WORDS.index("some")
        removed = loop(model, noise.expand(len(places), -1, -1, -1), without) - picture
    maps["occlusion of the word"] = torch.stack([pooled(one[None]) for one in removed])
    maps["the picture's ink, for every word"] = pooled(picture + 1).expand(len(places), -1)
    ink = maps["the picture's ink, for every word"]
    maps["cross-attention x the picture's ink"] = maps["cross-attention (DAAM)"] * ink
    maps["random"] = torch.rand(len(places), GRID * GRID, generator=torch.Generator().manual_seed(len(prompt)))
    return maps


def spearman(one: Tensor, two: Tensor) -> float:
    """Rank correlation; 0 for a map that is the same everywhere."""
    if bool((one == one[0]).all()):
        return 0.0
    return float(np.corrcoef(rankdata(one.numpy()), rankdata(two.numpy()))[0, 1])


def auc(values: Tensor, truth: Tensor) -> float:
    """How often a cell among the most changed has the larger value than another."""
    ranks = rankdata(values.numpy())
    count = max(1, round(TOP * len(truth)))
    top = truth.argsort(descending=True)[:count].numpy()
    return float((ranks[top].sum() - count * (count + 1) / 2) / (count * (len(truth) - count)))


def measure(model: DigitDiffusion, prompt: str, seed: int) -> dict[str, tuple[float, float, float]]:
    """By method: rank correlation, AUC, and rank correlation of the difference between two words of a kind."""
    noise = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(seed))
    words = prompt.split()
    places = [place for place, word in enumerate(words) if word not in ("a", "of")]
    loop = functools.partial(sample, steps=STEPS)
    with torch.no_grad():
        picture = loop(model, noise, tokens(prompt))
        truth = []
        for place in places:
            changed = tokens(others(words, place))
            truth.append(pooled(loop(model, noise.expand(len(changed), -1, -1, -1), changed) - picture))
    wanted = torch.stack(truth)  # (places, cells)
    kinds = [[k for k, place in enumerate(places) if words[place] in kind] for kind in (COLORS, CLASS_NAMES)]
    found = {}
    for name, maps in maps_of(model, noise, prompt, places).items():
        pairs = list(zip(maps, wanted, strict=True))
        apart = [spearman(*(one[first] / one[first].sum() - one[second] / one[second].sum() for one in (maps, wanted)))
                 for first, second in kinds]  # fmt: skip
        found[name] = (
            float(np.mean([spearman(*pair) for pair in pairs])),
            float(np.mean([auc(*pair) for pair in pairs])),
            float(np.mean(apart)),
        )
    return found


def interval(values: np.ndarray, draws: int = 2000) -> str:
    """Mean and its 95 % interval by bootstrap over prompts."""
    random = np.random.default_rng(0)
    means = values[random.integers(0, len(values), (draws, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def report(found: dict[str, np.ndarray], first: str = "relevance") -> list[str]:
    """The tables, as lines of Markdown.

    Args:
        found: by method, the numbers of `measure`, `(prompt, 3)`.
        first: method that the others are compared with.
    """
    lines = ["| map of a word | rank correlation | AUC | one word against the other |", "| --- | --- | --- | --- |"]
    order = sorted(found, key=lambda name: -found[name][:, 0].mean())
    lines += [f"| {name} | {' | '.join(interval(found[name][:, k]) for k in range(3))} |" for name in order]
    lines += ["", f"Paired differences, {first} less the other:", ""]
    lines += ["| other | rank correlation | AUC | one word against the other |", "| --- | --- | --- | --- |"]
    for name in order:
        if name != first:
            both = found[first] - found[name]
            lines.append(f"| {name} | {' | '.join(interval(both[:, k]) for k in range(3))} |")
    return lines


def stored() -> dict[str, np.ndarray]:
    """By method, the numbers of `measure` for the prompts measured so far, `(prompt, 3)`."""
    if not STORED.exists():
        return {}
    with np.load(STORED) as file:
        return dict(file)


def page(found: dict[str, np.ndarray], count: int) -> str:
    """The page on the first prompts."""
    tables = report({name: rows[:count] for name, rows in found.items()})
    return HEAD.format(count) + "\n".join(tables) + "\n"


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description="Maps of words of a diffusion model against the truth.")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--fresh", action="store_true", help="measure all prompts again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, wanted = load_digit_diffusion(), prompts(options.prompts)
    found: dict[str, Any] = {} if options.fresh else stored()
    done = min(len(wanted), *map(len, found.values())) if found else 0
    for seed, prompt in enumerate(track(wanted[done:], "maps of words"), done):
        for name, row in measure(model, prompt, seed).items():
            found[name] = np.vstack([found.get(name, np.zeros((0, 3)))[:seed], row])
        with whole(STORED) as file:
            np.savez_compressed(file, **found)
    STORED.with_suffix(".md").write_text(page(found, len(wanted)), encoding="utf-8")


if __name__ == "__main__":
    main()
