"""Which score of a language model should be explained by default: leave-one-out for several scores of the same token.

python -m benchmarks.token_targets > benchmarks/token_targets.md    (some minutes on one core)

25 prompts of benchmarks.token_prompts that took part in choosing options, so that the others stay held out.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import torch

from .token_prompts import prompts
from .token_report import rank
from .token_truth import DRAWS, Case, Model, without
from .tokens import load

PARTS = (0.2, 0.4, 0.6)
"""Shares of the tokens that are deleted, strongest first, or kept."""


def scores(case: Case, logits: torch.Tensor, rival: int) -> dict[str, torch.Tensor]:
    """By name, the score of the predicted token in each row of `(n, vocabulary)`; the last is a contrast by hand."""
    own = logits[:, case.answer]
    return {
        "logit": own,
        "log p": own - logits.logsumexp(dim=1),
        "less the runner-up": own - logits[:, rival],
        "less the mean of others": own - (logits.sum(dim=1) - own) / (logits.shape[1] - 1),
        "less a given foil": own - logits[:, case.foil],
    }


def kept(model: Model, case: Case, places: Iterable[int]) -> float:
    """The probability of the answer after some tokens alone."""
    with torch.no_grad():
        logits = model.logits(model.table[case.ids[sorted(places)]][None])
    return float(logits.softmax(dim=1)[0, case.answer])


def measured(model: Model, case: Case, pool: torch.Tensor) -> dict[str, list[float]]:
    """By score: Spearman with the map of the contrast, whether the strongest token is the same, and two curves."""
    places = range(len(case.ids))
    changed, _ = without(model, case.ids, [(place,) for place in places], "drawn", pool)
    with torch.no_grad():
        logits = model.logits(torch.cat([model.table[case.ids][None], changed]))
    rival = int(logits[0].topk(2).indices[1])
    maps = {
        name: (score[0] - score[1:].reshape(DRAWS, -1).mean(dim=0)).double()
        for name, score in scores(case, logits, rival).items()
    }
    foil, whole, found = maps["less a given foil"], kept(model, case, places), {}
    for name, values in maps.items():
        order = values[:-1].argsort(descending=True).tolist()  # the last token stays, for it has to answer
        cuts = [max(1, round(part * len(order))) for part in PARTS]
        without_them = [1 - kept(model, case, {*places} - {*order[:cut]}) / whole for cut in cuts]
        alone = [1 - kept(model, case, [*order[:cut], len(order)]) / whole for cut in cuts if cut < len(order)]
        same = float(values.argmax() == foil.argmax())
        found[name] = [rank(values, foil), same, statistics.mean(without_them), statistics.mean(alone or [0.0])]
    return found


def main() -> None:
    """Print the report."""
    torch.set_num_threads(1)
    model = load()
    cases = [case for number, case in enumerate(model.cases(prompts())) if number % 3 == 0][::3]
    pool = torch.cat([case.ids for case in cases])
    rows: dict[str, list[list[float]]] = {}
    for case in cases:
        for name, row in measured(model, case, pool).items():
            rows.setdefault(name, []).append(row)
    print("# Which score of the next token to explain\n")
    print(
        f"SmolLM2-135M-Instruct, {len(cases)} prompts, leave-one-out with {DRAWS} drawn tokens for the predicted token."
    )
    print(
        "Made by `python -m benchmarks.token_targets`. Spearman with the map of a contrast with a given foil, and how"
    )
    print("often the strongest token is the same; the part of the answer's probability that is lost when the strongest")
    print("20, 40, 60 % of the tokens are deleted (higher is better), and when only they are kept (lower is better).\n")
    print("| score | Spearman | strongest | deleted | kept |\n| --- | ---: | ---: | ---: | ---: |")
    for name, table in rows.items():
        print(f"| {name} | {' | '.join(f'{statistics.mean(column):.3f}' for column in zip(*table, strict=True))} |")


if __name__ == "__main__":
    main()
