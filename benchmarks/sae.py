"""Sparse autoencoders of SmolLM2's middle layer and of the digit net: how well, how sparse, and what features are for.

    python -m benchmarks.sae [FILE]     # both; a quarter of an hour, and less where FILE has the weights
    python -m benchmarks.sae digits     # the digit net only, a minute

Texts are docstrings of installed packages and the pages of this repository. "Loss recovered" is what of the loss
between the layer as it is and its mean is left when the reconstruction is put in: (mean - spliced) / (mean - clean).
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pathlib
import sys
import time
from typing import Any

import torch

from layerlens import Basis, Lens, SparseAutoencoder, basis, contrast

MODULES = ("torch", "torch.nn", "torch.nn.functional", "numpy", "numpy.linalg", "pathlib", "collections", "datetime",
           "argparse", "email.message", "http.client", "logging", "random", "statistics", "textwrap",
           "transformers", "sklearn.cluster", "sklearn.linear_model")  # fmt: skip
WINDOW = 64
"""Tokens of a window; the first of each, an attention sink, is neither trained on nor counted."""

LAYER = 14
"""The middle layer of SmolLM2, of 30."""

PROMPT, OTHER = "Delete the first item of a", "Delete the first character of a"
"""A prompt, after which SmolLM2 expects " list", and one of as many tokens after which it expects " string"."""


def texts() -> list[str]:
    """Docstrings of some packages, and the pages of this repository."""
    found: dict[str, None] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for attribute in sorted(vars(module)):
            if not attribute.startswith("_") and name != "transformers":
                found[(inspect.getdoc(getattr(module, attribute)) or "")[:3000]] = None
    docs = pathlib.Path(__file__).parents[1] / "docs"
    pages = [page.read_text() for page in sorted(docs.glob("*.md"))]
    return [one for one in (*found, *pages) if len(one) > 200]


def windows(tokenizer: Any) -> torch.Tensor:
    """The tokens of all texts, cut into windows in random order."""
    ids = [token for text in texts() for token in tokenizer(text)["input_ids"]]
    cut = torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).reshape(-1, WINDOW)
    return cut[torch.randperm(len(cut), generator=torch.Generator().manual_seed(0))]


def spliced(model: Any, ids: torch.Tensor, found: Basis, mean: torch.Tensor | None = None) -> torch.Tensor:
    """Logits with what the basis reconstructs, or the mean, instead of the layer; the first token is kept."""

    def change(output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        new = hidden - found.error(hidden.movedim(-1, 1)).movedim(1, -1) if mean is None else mean.expand_as(hidden)
        new = torch.cat([hidden[:, :1], new[:, 1:]], dim=1)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return torch.as_tensor(Lens(model).run({"input_ids": ids}, edits={found.layer: change}).logits)


def losses(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """Cross entropy of the next tokens, from the second on."""
    return float(torch.nn.functional.cross_entropy(logits[:, 1:-1].flatten(0, 1), ids[:, 2:].flatten()))


@torch.no_grad()
def quality(model: Any, ids: torch.Tensor, found: Basis) -> dict[str, float]:
    """Explained variance, codes a token, features in use, losses, and KL from the model as it is, on held-out ids."""
    parts: dict[str, list[torch.Tensor]] = {"hidden": []}

    def keep(output: Any) -> Any:
        parts["hidden"].append((output[0] if isinstance(output, tuple) else output)[:, 1:].flatten(0, 1))
        return output

    clean = Lens(model).run({"input_ids": ids}, edits={found.layer: keep}).logits
    hidden = torch.cat(parts["hidden"])
    codes, error = found.codes(hidden), found.error(hidden)
    with_basis, with_mean = spliced(model, ids, found), spliced(model, ids, found, hidden.mean(dim=0))
    before, after = (one[:, 1:].log_softmax(dim=-1) for one in (clean, with_basis))
    loss = {name: losses(one, ids) for name, one in (("clean", clean), ("mean", with_mean), ("spliced", with_basis))}
    return {
        "explained": 1 - float(error.square().sum() / (hidden - hidden.mean(dim=0)).square().sum()),
        "L0": float((codes != 0).sum(dim=1).float().mean()),
        "in use": float((codes != 0).any(dim=0).float().mean()),
        **{f"loss, {name}": value for name, value in loss.items()},
        "loss recovered": (loss["mean"] - loss["spliced"]) / (loss["mean"] - loss["clean"]),
        "KL": float((before.exp() * (before - after)).sum(dim=-1).mean()),
    }


def table(rows: dict[str, dict[str, float]]) -> None:
    """Print numbers by basis."""
    names = list(next(iter(rows.values())))
    print("| basis | " + " | ".join(names) + " |\n| --- |" + " ---: |" * len(names))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[one]:.3g}" for one in names) + " |")


def language(
    file: str | None = None, count: int = 1000, features: int = 1024, active: int = 32, steps: int = 1000
) -> None:
    """Train on the output of the middle layer of SmolLM2-135M-Instruct, and ask which feature made an answer.

    Args:
        file: where the weights are kept; they are read from there, if they are.
        count: windows to train on.
        features: features of the autoencoder.
        active: features of a token.
        steps: steps of training.
    """
    from tests.real_models import smollm2

    model, tokenizer = smollm2()
    every = windows(tokenizer)
    train, held_out = every[:count], every[count : count + 40]
    short = copy.deepcopy(model.model)  # what comes after the layer need not run
    short.layers, short.norm = short.layers[: LAYER + 1], torch.nn.Identity()
    path, inner = f"model.layers.{LAYER}", f"layers.{LAYER}"
    options: dict[str, Any] = {"places": WINDOW, "skip": 1, "batch_size": 16}
    coder = SparseAutoencoder(short.config.hidden_size, features, active)
    if file is not None and pathlib.Path(file).exists():
        coder.load_state_dict(torch.load(file, weights_only=True))
    else:
        start = time.perf_counter()
        made = basis(short, train, inner, method="sae", features=features, active=active, steps=steps, **options)
        coder = made.coder
        print(
            f"{len(every)} windows of {WINDOW} tokens, {count} trained on; {time.perf_counter() - start:.0f} s. {made}"
        )
        if file is not None:
            torch.save(coder.state_dict(), file)
    sae = Basis(path, coder, features=[f"feature {number}" for number in range(features)], name="SAE")
    principal = basis(short, train[:300], inner, features=active, **options)
    parts = {"SAE": sae, f"PCA, {active} components": Basis(path, principal.coder, name="PCA")}
    table({name: quality(model, held_out, one) for name, one in parts.items()})

    lens = Lens(model, tokenizer=tokenizer)
    target = contrast(" list", " string")
    relevance = lens.relevance(PROMPT, target=target, layers=sae, rules="cp").bases[path]
    by_place = relevance.checks["per place"][:, 0, 1:]  # without the first token
    best = by_place.sum(dim=1).topk(6)
    names = [relevance.items[one] for one in best.indices.tolist()]
    print(f"\nscore {float(lens.relevance(PROMPT, target=target).score):.2f}; relevance from the second token on:",
          [(name, round(value, 2)) for name, value in zip(names, best.values.tolist(), strict=True)])  # fmt: skip
    for name in ("constant", "error"):
        print(f"{name}: {float(by_place[relevance.items.index(name)].sum()):.2f}", end="; ")
    without = lens.ablate(PROMPT, sae, by="unit", target=target)  # features that are off need no run
    screen = lens.ablate(PROMPT, sae, by="unit", target=target, count=100)
    patched = lens.patch(OTHER, PROMPT, sae, by="unit", target=target, count=100)
    print()
    for what, found in (("ablated", without), ("patched", patched)):
        later = [(name.removeprefix(f"{path} "), round(value, 2)) for name, value in found.ranked()]
        print(f"{what}:", [one for one in later if not one[0].endswith(" at 0")][:8])
    print(f"100 parts, first-order screen against exact: {float(screen.checks['rank correlation']):.2f}")
    found = [name for name, _ in (*without.ranked(), *patched.ranked()) if "feature" in name and " at 0" not in name]
    numbers = list(dict.fromkeys(int(name.split()[-3]) for name in found))[:8]
    for number, lines in contexts(short, tokenizer, every[count : count + 200], sae, numbers).items():
        print(f"feature {number}:", " | ".join(lines))
    for number in numbers[:4]:
        for strength in (-20.0, 20.0):
            logits = lens.run(PROMPT, edits={path: sae.steer(number, strength)}).logits[0, -1]
            print(f"feature {number} {strength:+g}:", [tokenizer.decode(one) for one in logits.topk(4).indices])


@torch.no_grad()
def contexts(short: Any, tokenizer: Any, ids: torch.Tensor, sae: Basis, numbers: list[int]) -> dict[int, list[str]]:
    """Return the held-out tokens, in their context, at which each feature is largest; first tokens do not count."""
    hidden = torch.cat([short(input_ids=part).last_hidden_state for part in ids.split(20)])
    codes = sae.codes(hidden.movedim(-1, 1))[:, numbers, 1:]  # (window, feature, place)
    lines: dict[int, list[str]] = {}
    for row, number in enumerate(numbers):
        best = codes[:, row].flatten().topk(5).indices.tolist()
        lines[number] = [context(tokenizer, ids[at // (WINDOW - 1)], at % (WINDOW - 1) + 1) for at in best]
    return lines


def context(tokenizer: Any, ids: torch.Tensor, place: int) -> str:
    """The tokens around a place, which is in brackets."""
    before, after = ids[max(0, place - 6) : place], ids[place + 1 : place + 3]
    text = f"{tokenizer.decode(before)}[{tokenizer.decode(ids[place])}]{tokenizer.decode(after)}"
    return " ".join(text.split())


def digits() -> None:
    """Train on the last block of the package's digit net."""
    from layerlens.demo.embedded import CLASS_NAMES, load_digit_net
    from layerlens.demo.train_digits import make_scenes, split_digits

    train, test = split_digits(0)
    images = make_scenes(train, range(1000), seed=6)[0].float() / 255
    held_out, labels, _ = make_scenes(test, range(359), seed=5)
    net, held_out = load_digit_net(), held_out.float() / 255
    lens = Lens(net, class_names=CLASS_NAMES)
    start = time.perf_counter()
    options: dict[str, Any] = {"method": "sae", "features": 128, "active": 8, "places": 32, "max_samples": 1000}
    sae = lens.basis(images, "blocks.2", **options)
    print(f"{time.perf_counter() - start:.0f} s. {sae}")
    held: list[torch.Tensor] = []
    edits = {"clean": lambda h: held.append(h) or h, "spliced": lambda h: h - sae.error(h),
             "mean": lambda h: h.mean(dim=(0, 2, 3), keepdim=True).expand_as(h)}  # fmt: skip
    logits = {name: lens.run(held_out, edits={"blocks.2": edit}).detach() for name, edit in edits.items()}
    loss = {name: float(torch.nn.functional.cross_entropy(one, labels)) for name, one in logits.items()}
    right = {name: float((one.argmax(dim=1) == labels).float().mean()) for name, one in logits.items()}
    with torch.no_grad():
        codes, error = sae.codes(held[0]), sae.error(held[0])
    spread = (held[0] - held[0].mean(dim=(0, 2, 3), keepdim=True)).square().sum()
    table({"SAE, 128 features": {
        "explained": float(1 - error.square().sum() / spread), "L0": float((codes != 0).sum(dim=1).float().mean()),
        **{f"loss, {name}": value for name, value in loss.items()},
        "loss recovered": (loss["mean"] - loss["spliced"]) / (loss["mean"] - loss["clean"]),
        **{f"right, {name}": value for name, value in right.items()},
    }})  # fmt: skip
    threes = held_out[labels == 3]
    without = lens.ablate(threes, sae, target="three")
    relevance = lens.relevance(threes, target="three", layers=sae).bases["blocks.2"]
    print("ablated:", [(name, round(value, 2)) for name, value in without.ranked()[:5]])
    print("relevance:", [(name, round(value, 2)) for name, value in relevance.ranked()[:5]])
    best = int(without.ranked()[0][0].split()[-1]) if "feature" in without.ranked()[0][0] else 0
    top = lens.top_inputs(held_out, sae, units=best, by="activation", count=20, regions=False)
    print(f"digits of the top inputs of feature {best}:", labels[top.index[0]].tolist())


if __name__ == "__main__":
    digits()
    if sys.argv[1:] != ["digits"]:
        language(*sys.argv[1:])
