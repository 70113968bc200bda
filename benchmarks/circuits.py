"""Circuits of SmolLM2 by four ways to score heads and MLPs: how much of each task do the best of them carry?

    python -m benchmarks.circuits [pairs]
    python -m benchmarks.circuits cost

Pairs of sentences from templates; parts are scored on one half of the pairs, and kept or removed on the other half.
`cost` measures what graphs and tables take, next to one gradient.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import torch

from benchmarks.token_prompts import CAPITALS, LISTS, NAMES, THINGS
from layerlens import Lens, contrast
from tests.real_models import smollm2

K = (3, 9, 30, 90, 180)
PASSES = {
    "relevance (cp)": 3, "relevance patching (cp)": 4, "relevance patching (attn)": 4,
    "attribution patching": 4, "EAP-IG, 5 steps": 16, "random": 0,
}  # fmt: skip
"""Forward passes that each way costs for a pair; a backward pass counts two."""
DRAWS = 2000


def tasks() -> dict[str, list[tuple[str, str, str, str]]]:
    """Return task -> (clean text, corrupted text, answer, foil), shuffled."""
    places, things = ("store", "park", "school", "station"), ("drink", "book", "flower", "letter")
    found = {
        "names": [
            (f"When {a} and {b} went to the {place}, {b} gave a {thing} to",
             f"When {a} and {b} went to the {place}, {a} gave a {thing} to", f" {a}", f" {b}")
            for (a, b), place, thing in itertools.product([*NAMES, *[(b, a) for a, b in NAMES]], places, things)
        ],
        "capitals": [
            (f"The capital of {one} is the city of", f"The capital of {other} is the city of", f" {city}", f" {town}")
            for (one, city), (other, town) in itertools.permutations(CAPITALS, 2)
        ],
        "agreement": [
            (f"The {many} {where} the {near}", f"The {one} {where} the {near}", " are", " is")
            for (many, one), where, near in itertools.product(
                THINGS, ("near", "behind", "under", "on"), ("cabinet", "window", "chair", "table")
            )
        ],
        "copying": list(_copying()),
    }  # fmt: skip
    for pairs in found.values():
        random.Random(0).shuffle(pairs)
    return found


def _copying() -> Iterator[tuple[str, str, str, str]]:
    """A list, and its beginning again; in the corrupted text the two words before the answer come from elsewhere."""
    lists = [words.split() for words in LISTS]
    for one, other in itertools.permutations(lists, 2):
        for order in itertools.islice(itertools.permutations(one), 0, 120, 30):
            a, b, c, d, e = order
            yield f"{a} {b} {c} {d} {e} {a} {b} {c}", f"{a} {b} {c} {d} {e} {a} {other[0]} {other[1]}", f" {d}", f" {e}"


def batches(lens: Lens, tokenizer: object, task: list[tuple[str, str, str, str]], count: int) -> tuple:
    """Return clean and corrupted inputs of the most common length, and the contrast: `count` pairs that are solved."""
    single = [
        row for row in task
        if len(tokenizer(row[0])["input_ids"]) == len(tokenizer(row[1])["input_ids"])
        and all(len(tokenizer(word)["input_ids"]) == 1 for word in row[2:])
    ]  # fmt: skip
    lengths = [len(tokenizer(row[0])["input_ids"]) for row in single]
    usual = max(set(lengths), key=lengths.count)
    rows = [row for row, length in zip(single, lengths, strict=True) if length == usual][: 3 * count]
    clean, other = lens.inputs([row[0] for row in rows]), lens.inputs([row[1] for row in rows])
    ids = [[tokenizer(word)["input_ids"][0] for word in row[2:]] for row in rows]
    with torch.no_grad():
        both = [lens.run(one).logits[:, -1] for one in (clean, other)]
    gaps = [logits.gather(1, torch.tensor(ids)).diff(dim=1).squeeze(1).neg() for logits in both]
    solved = [place for place in range(len(rows)) if gaps[0][place] > 0 and gaps[0][place] > gaps[1][place]][:count]
    kept = torch.tensor(solved)
    return clean.rows(kept), other.rows(kept), [ids[place] for place in solved]


def target(ids: list[list[int]]) -> object:
    """The logit of the answer minus that of the foil at the last token, sample by sample."""
    return contrast([(-1, answer) for answer, _ in ids], [(-1, foil) for _, foil in ids])


class Nodes:
    """The values of heads and MLPs of a Llama in a run, by plain hooks.

    Args:
        model: the model.
        inputs: its input.
        mix: values of the embedding to use instead.
    """

    def __init__(self, model: torch.nn.Module, inputs: object, mix: torch.Tensor | None = None) -> None:
        self.values: dict[str, torch.Tensor] = {}
        handles = []
        for number, block in enumerate(model.model.layers):
            handles.append(
                block.self_attn.o_proj.register_forward_pre_hook(self._keep(f"model.layers.{number}.self_attn"))
            )
            handles.append(block.mlp.register_forward_hook(self._keep(f"model.layers.{number}.mlp")))

        def embed(module: object, args: object, output: torch.Tensor) -> torch.Tensor:
            self.embedding = output if mix is None else mix
            self.embedding = self.embedding.detach().requires_grad_()
            return self.embedding

        handles.append(model.model.embed_tokens.register_forward_hook(embed))
        try:
            with torch.enable_grad():
                self.logits = model(**inputs.tensors(), use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, name: str) -> Callable[..., None]:
        def keep(module: object, args: tuple, output: torch.Tensor | None = None) -> None:
            self.values[name] = args[0] if output is None else output

        return keep

    def gradients(self, ids: list[list[int]]) -> dict[str, torch.Tensor]:
        """Of the sum of the contrasts."""
        gap = self.logits[:, -1].gather(1, torch.tensor(ids)).diff(dim=1).neg().sum()
        return dict(zip(self.values, torch.autograd.grad(gap, list(self.values.values())), strict=True))


def parts(products: dict[str, torch.Tensor], heads: int) -> dict[str, float]:
    """Sum products over each head and each MLP, mean over samples."""
    found = {}
    for name, product in products.items():
        if name.endswith("mlp"):
            found[name] = float(product.sum() / len(product))
        else:
            by_head = product.unflatten(-1, (heads, -1)).sum(dim=(0, 1, 3)) / len(product)
            found |= {f"{name} head {head}": value for head, value in enumerate(by_head.tolist())}
    return found


def scores(lens: Lens, clean: object, other: object, ids: list[list[int]]) -> dict[str, dict[str, float]]:
    """Return way -> part -> its score."""
    model, heads = lens.model, lens.model.config.num_attention_heads
    found: dict[str, dict[str, float]] = {}
    for rules in ("cp", "attn"):
        table = lens.contributions(clean, other=other, target=target(ids), parts="head", rules=rules)
        found[f"relevance patching ({rules})"] = dict(table.ranked("difference"))
        if rules == "cp":
            found["relevance (cp)"] = dict(table.ranked("total"))
    first, second = Nodes(model, clean), Nodes(model, other)
    difference = {name: (value - second.values[name]).detach() for name, value in first.values.items()}
    slopes = first.gradients(ids)
    found["attribution patching"] = parts({name: slopes[name] * difference[name] for name in slopes}, heads)
    total = {name: torch.zeros_like(value) for name, value in difference.items()}
    start, end = second.embedding.detach(), first.embedding.detach()
    for step in range(1, 6):
        between = Nodes(model, clean, start + (end - start) * step / 5)
        for name, slope in between.gradients(ids).items():
            total[name] += slope / 5
    found["EAP-IG, 5 steps"] = parts({name: total[name] * difference[name] for name in total}, heads)
    names = list(found["attribution patching"])
    random.Random(1).shuffle(names)
    found["random"] = {name: float(len(names) - place) for place, name in enumerate(names)}
    return found


def interval(values: torch.Tensor) -> str:
    """The mean and its 95 % interval by the bootstrap."""
    draws = values[torch.randint(len(values), (DRAWS, len(values)), generator=torch.Generator().manual_seed(0))].mean(
        dim=1
    )
    low, high = torch.quantile(draws, torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
    return f"{float(values.mean()):.2f} [{low:.2f}, {high:.2f}]"


def cost(repeats: int = 7) -> None:
    """Print what each way takes in processor time, in turn with one gradient of the same score by plain torch."""
    torch.set_num_threads(1)
    model, tokenizer = smollm2()
    lens, text, fact = Lens(model, tokenizer=tokenizer), "The capital of France is", contrast(" Paris", " Rome")
    inputs = lens.inputs(text)
    ids, mask = inputs.tensors()["input_ids"], inputs.tensors()["attention_mask"]
    answer, foil = (tokenizer(word)["input_ids"][0] for word in (" Paris", " Rome"))

    def gradient() -> None:
        start = model.get_input_embeddings()(ids).detach().requires_grad_()
        logits = model(inputs_embeds=start, attention_mask=mask, use_cache=False).logits[0, -1]
        torch.autograd.grad(logits[answer] - logits[foil], start)

    ways: dict[str, Callable[[], object]] = {
        "one gradient": gradient,
        "relevance": lambda: lens.relevance(inputs, target=fact),
        "contributions, layers": lambda: lens.contributions(inputs, target=fact),
        "contributions, heads": lambda: lens.contributions(inputs, target=fact, parts="head"),
        "graph of layers": lambda: lens.attribution_graph(inputs, target=fact),
        "graph of heads": lambda: lens.attribution_graph(inputs, target=fact, nodes="head"),
        "graph of heads, keep=0": lambda: lens.attribution_graph(inputs, target=fact, nodes="head", keep=0),
        "graph of positions": lambda: lens.attribution_graph(inputs, target=fact, nodes="position"),
    }
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    opened = {}
    for _ in range(repeats + 1):  # the first one is warm-up
        for way, run in ways.items():
            start = time.process_time()
            result = run()
            seconds[way].append(time.process_time() - start)
            opened[way] = len(result.receivers) if hasattr(result, "receivers") else ""
    floor = statistics.median(seconds["one gradient"][1:])
    print(f"SmolLM2-135M-Instruct, {ids.shape[1]} tokens, one thread; median processor time of {repeats} turns\n")
    print("| way | backward passes | seconds | gradients |")
    print("| --- | ---: | ---: | ---: |")
    for way, taken in seconds.items():
        middle = statistics.median(taken[1:])
        print(f"| {way} | {opened[way]} | {middle:.2f} | {middle / floor:.1f} |")


def main() -> None:
    """Print the tables."""
    if sys.argv[1:2] == ["cost"]:
        cost()
        return
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    torch.set_num_threads(1)
    model, tokenizer = smollm2()
    lens = Lens(model, tokenizer=tokenizer)
    print(
        f"SmolLM2-135M-Instruct, {count} pairs a task, {count // 2} of them held out; area below the curve of what is"
    )
    print("left when the best parts are kept (higher is better) and when they are removed (lower is better)\n")
    print("| task | way | passes a pair | kept | removed | kept - EAP-IG | seconds |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for task, rows in tasks().items():
        clean, other, ids = batches(lens, tokenizer, rows, count)
        half = len(ids) // 2
        train = torch.arange(half)
        test = torch.arange(half, len(ids))
        found = scores(lens, clean.rows(train), other.rows(train), ids[:half])
        areas: dict[str, tuple[torch.Tensor, float]] = {}
        for way, values in found.items():
            start = time.perf_counter()
            order = "value" if way == "random" else "size"
            curve = lens.circuit_faithfulness(
                values, clean.rows(test), other.rows(test), target=target(ids[half:]), k=K, order=order, controls=0,
                progress=False,
            )  # fmt: skip
            areas[way] = curve.checks["area per sample"], time.perf_counter() - start
        best = areas["EAP-IG, 5 steps"][0][0]
        for way, (area, seconds) in areas.items():
            paired = "" if way.startswith("EAP") else interval(area[0] - best)
            cells = (task, way, PASSES[way], interval(area[0]), interval(area[1]), paired, f"{seconds:.0f}")
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*ledger does not close.*")
    main()
