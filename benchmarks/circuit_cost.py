"""What graphs and tables of parts take, next to one gradient."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from layerlens import Lens, contrast


def measure_cost(lens: Lens, tokenizer: Any, turns: int = 7) -> dict[str, np.ndarray]:
    """Return the processor time of each way, in turn with one gradient of the same score by plain torch.

    Args:
        lens: a language model.
        tokenizer: its tokenizer.
        turns: how often each is measured, after a first time.

    Returns:
        `"ways"`, `"passes"` (backward passes of a graph; 0 for others) and `"seconds"`, `(ways, turns)`.
    """
    model, text, fact = lens.model, "The capital of France is", contrast(" Paris", " Rome")
    inputs = lens.inputs(text)
    ids, mask = inputs.tensors()["input_ids"], inputs.tensors()["attention_mask"]
    answer, foil = (tokenizer(word)["input_ids"][0] for word in (" Paris", " Rome"))

    def gradient() -> None:
        start = model.get_input_embeddings()(ids).detach().requires_grad_()  # type: ignore[operator]
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
    seconds, opened = np.zeros((len(ways), turns + 1)), np.zeros(len(ways), dtype=int)
    for turn in range(turns + 1):  # the first one is warm-up
        for row, run in enumerate(ways.values()):
            start = time.process_time()
            result = run()
            seconds[row, turn] = time.process_time() - start
            opened[row] = len(getattr(result, "receivers", ()))
    return {"ways": np.array(list(ways)), "passes": opened, "seconds": seconds[:, 1:]}
