"""The page on circuits, from the numbers of every pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .circuit_curves import interval
from .circuit_heads import DRAWS, TAKEN
from .circuit_ways import EAP, EXACT, LONG, OURS, RANDOM, WAYS

Numbers = Mapping[str, np.ndarray]
NAMES = {
    "names": "names given twice", "greater-than": "greater-than, digits", "agreement": "subject and verb",
    "capitals": "capitals", "copying": "copying by induction", "pictures": "EfficientNet-Lite0, channels",
    "letters": "text reader, LSTM units",
}  # fmt: skip
HEAD = """# Circuits

Made by `python -m benchmarks.circuits FOLDER`; the numbers of every pair are in `circuits.npz`, and what they mean is
in docs/circuits.md.

- **SmolLM2-135M-Instruct**: 100 pairs of texts a task that it solves; 270 heads and 30 MLPs are scored on 40 pairs, and
  kept or taken out on the other 60. Exact patching scores on 4 pairs (greater-than, of long texts: none).
- **EfficientNet-Lite0**: 664 channels of four blocks, on photographs and crops of them, each with one of another class:
  its class against that one; 16 pairs to score on, 24 held out; exact patching on one.
- **A text reader** (easyocr): 1024 units of its two LSTMs, on words of six letters with one letter changed: the letter
  against that one; 20 pairs to score on, 40 held out; exact patching on two.

The area is that below the curve of the share of the score that is left, over the share of the parts that is kept (1, 3,
10, 30 and 60 % of them; higher is better). In square brackets 95 % intervals by the bootstrap over held-out pairs. A
forward pass counts one, a backward pass two. The curves are made by plain hooks; those of `lens.circuit_faithfulness`
are the same.
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, numbers to the right."""
    ruler = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ruler, *rows])


def passes(way: str) -> str:
    """Return the passes of a way for each pair."""
    count = WAYS[way][0]
    return "one a part" if np.isnan(count) else f"{count:.0f}"


def areas(numbers: Numbers, ablation: str, kind: str) -> str:
    """Return areas of every way and experiment."""
    known = [name for name in NAMES if f"{name} {ablation}/{EAP}/{kind}" in numbers]
    rows = []
    for way in WAYS:
        found = [numbers.get(f"{name} {ablation}/{way}/{kind}") for name in known]
        if any(one is not None for one in found):
            rows.append([way, passes(way), *("-" if one is None else interval(one) for one in found)])
    return table(["way", "passes", *(NAMES[name] for name in known)], rows)


def paired(numbers: Numbers) -> str:
    """Return the area of ours less that of others, pair by pair."""
    known = [name for name in NAMES if f"{name} resample/{EAP}/kept" in numbers]
    rows = []
    for way in (EAP, LONG, "attribution patching", "relevance patching (attn)", "relevance patching (cp)", EXACT):
        row = []
        for name in known:
            other = numbers.get(f"{name} resample/{way}/kept")
            row.append("-" if other is None else interval(numbers[f"{name} resample/{OURS}/kept"] - other))
        rows.append([way, passes(way), *row])
    return table([f"{OURS}, 4 passes, less", "passes", *(NAMES[name] for name in known)], rows)


def shares(numbers: Numbers) -> str:
    """Return what is left with the best parts, means over pairs."""
    rows = []
    for name, title in NAMES.items():
        for way in (OURS, EAP, RANDOM):
            found = numbers.get(f"{name} resample/{way}/shares")
            if found is not None:
                rows.append([title, way, *(f"{value:.2f}" for value in found.mean(axis=1))])
    return table(["task", "way", "1 %", "3 %", "10 %", "30 %", "60 %"], rows)


def heads(numbers: Numbers) -> str:
    """Return what is left of the score without the best heads of each way."""
    ways = [key.split("/")[1] for key in numbers if key.startswith("heads/") and key.endswith("/left")]
    order = sorted(ways, key=lambda way: way == "random heads")
    rows = [[way, *map(interval, numbers[f"heads/{way}/left"])] for way in order]
    return table(["heads taken out", *(f"{count} heads" for count in TAKEN)], rows)


def overlap(numbers: Numbers) -> str:
    """Say how far contributions and attention patterns agree on the heads."""
    values = {way: numbers[f"heads/{way}/values"] for way in ("contributions, difference", "attention pattern")}
    best = [set(np.argsort(-row)[:10].tolist()) for row in values.values()]
    r = np.corrcoef(*values.values())[0, 1]
    return f"Of the ten heads of each, {len(best[0] & best[1])} are the same; Pearson's r over all heads is {r:.2f}."


def ranks(numbers: Numbers, ablation: str) -> str:
    """Return rank correlations, mean over samples with its standard error."""
    titles = {"SmolLM2": "SmolLM2", "pictures": "EfficientNet-Lite0", "letters": "text reader, LSTM"}
    known = [name for name in titles if f"ranks {name}/contributions, total/{ablation}" in numbers]
    ways = [
        key.split("/")[1] for key in numbers if key.startswith(f"ranks {known[0]}/") and key.endswith(f"/{ablation}")
    ]
    rows = []
    for way in ways:
        found = [numbers[f"ranks {name}/{way}/{ablation}"] for name in known]
        rows.append([way, *(f"{one.mean():.2f} ± {one.std(ddof=1) / len(one) ** 0.5:.2f}" for one in found)])
    return table(
        ["way", *(f"{titles[name]}, {len(numbers[f'ranks {name}/{ways[0]}/{ablation}'])}" for name in known)], rows
    )


def with_exact(numbers: Numbers) -> str:
    """Return the correlation of scores with those of exact patching, over parts."""
    known = [name for name in NAMES if f"{name} scores/{EXACT}" in numbers]
    rows = []
    for way in (OURS, EAP, LONG, "attribution patching", "relevance patching (attn)", "relevance patching (cp)"):
        pairs = [(numbers[f"{name} scores/{way}"], numbers[f"{name} scores/{EXACT}"]) for name in known]
        rows.append([way, *(f"{np.corrcoef(*pair)[0, 1]:.2f}" for pair in pairs)])
    return table(["way", *(NAMES[name] for name in known)], rows)


def cost(numbers: Numbers) -> str:
    """Return what each way takes."""
    seconds = np.median(numbers["cost/seconds"], axis=1)
    passes = [str(count or "") for count in numbers["cost/passes"]]
    rows = [
        [way, count, f"{taken:.2f}", f"{taken / seconds[0]:.1f}"]
        for way, count, taken in zip(numbers["cost/ways"].tolist(), passes, seconds, strict=True)
    ]
    return table(["way", "backward passes", "seconds", "gradients"], rows)


def report(numbers: Numbers) -> str:
    """Return the page."""
    parts = [
        HEAD,
        "## Parts take the values of the corrupted input\n",
        areas(numbers, "resample", "kept"),
        f"\nPair by pair, the area of `{OURS}` less that of the other way:\n",
        paired(numbers),
        "\nThe share of the score that is left with the best parts:\n",
        shares(numbers),
        "\nArea below the curve when the best parts are taken out, from none to 10 % (lower is better):\n",
        areas(numbers, "resample", "removed"),
        "\n## Parts take means over corrupted inputs\n",
        "The parts in the same order, on 20 held-out pairs.\n",
        areas(numbers, "mean", "kept"),
        "\n## Parts take zeros\n",
        areas(numbers, "zero", "kept"),
        "\n## Induction heads\n",
    ]
    if "heads/names" in numbers:
        parts += [
            "Sixteen random tokens and the first eight of them again: the logit of the token that followed before, "
            "less that of another token of the text. Heads are found on 20 texts; on 40 others they take their values "
            "of a text with other tokens in front: the share of the score that is left. Random heads: mean of "
            f"{DRAWS} draws.\n",
            heads(numbers),
            f"\n{overlap(numbers)} The first by contribution: {', '.join(numbers['heads/names'][:5].tolist())}.",
        ]
    parts += [
        "\n## Taking each part out alone\n",
        "Pearson's r over parts of the scores of a way with those of exact patching (on fewer pairs):\n",
        with_exact(numbers),
        "",
    ]
    for ablation, what in (("zero", "by zeros"), ("resample", "by its corrupted value")):
        if any(key.startswith("ranks ") and key.endswith(ablation) for key in numbers):
            parts += [
                f"Spearman's, over parts, with what the score loses when one part is replaced {what}: mean over "
                "samples (their number in the head) with its standard error. Every second part of SmolLM2, every "
                "eighth of the others.\n",
                ranks(numbers, ablation),
                "",
            ]
    if "cost/ways" in numbers:
        parts += [
            "## Cost\n",
            "SmolLM2, 5 tokens, one thread, on a busy machine: median processor time, each way in turn with one "
            "gradient of the same score by plain torch (forward and backward).\n",
            cost(numbers),
        ]
    return "\n".join(parts).rstrip() + "\n"
