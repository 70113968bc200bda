"""Which map of tokens tells what a language model needs: every method against leaving tokens out.

python -m benchmarks.tokens measure FOLDER [PART PARTS]     (an hour on one core; can be stopped and taken up again)
python -m benchmarks.tokens report FOLDER > benchmarks/tokens.md

The model is SmolLM2-135M-Instruct (requirements-models.txt). Prompts it completes rightly are numbered; those divisible
by 3 were used to choose the method, the report is on the others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from .token_encoder import Encoder, sentences
from .token_methods import FOR_ALL_TARGETS, METHODS, target_of
from .token_prompts import prompts
from .token_truth import Case, Model, truth, without

TARGETS = ("contrast", "log p", "logit")
PARTS_REMOVED = (0.2, 0.4, 0.6, 0.8)
"""Shares of the tokens that are deleted, strongest first, or kept."""


def load() -> Model:
    """SmolLM2 with frozen parameters."""
    from tests.real_models import smollm2

    model, tokenizer = smollm2()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return Model(model, tokenizer)


def maps(model: Model, case: Case, targets: Sequence[str] = TARGETS) -> dict[str, dict[str, torch.Tensor]]:
    """By target and method, one number per token; and the seconds each took for the contrast."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    seconds = {}
    for target in targets:
        found[target] = {}
        for name in METHODS if target == "contrast" else FOR_ALL_TARGETS:
            start = time.process_time()
            found[target][name] = METHODS[name](model, case, target_of(case, target)).detach().double()
            if target == "contrast":
                seconds[name] = torch.tensor(time.process_time() - start)
    return {**found, "seconds": seconds}


def curves(model: Model, case: Case, values: dict[str, torch.Tensor], pool: torch.Tensor) -> dict[str, torch.Tensor]:
    """By method: how far the contrast falls when the strongest tokens are deleted, and when only they are kept.

    Means over `PARTS_REMOVED`, as parts of the contrast of the whole text: comprehensiveness and sufficiency (DeYoung
    et al. 2020). The last token stays, for it has to answer.
    """
    known: dict[tuple[int, ...], float] = {}

    def score(removed: Iterable[int]) -> float:
        key = tuple(sorted(removed))
        if key not in known:
            embeddings, _ = without(model, case.ids, [key], "deleted", pool)
            answer, foil, _ = model.scores(case, embeddings)[0].tolist()
            known[key] = answer - foil
        return known[key]

    whole = model.scores(case, model.table[case.ids][None])[0]
    base = float(whole[0] - whole[1])
    found = {}
    for name, map_ in values.items():
        order = map_[:-1].argsort(descending=True, stable=True).tolist()
        counts = [max(1, round(part * len(order))) for part in PARTS_REMOVED]
        out = sum(base - score(order[:count]) for count in counts) / len(counts) / base
        kept = sum(base - score(order[count:]) for count in counts if count < len(order)) / len(counts) / base
        found[name] = torch.tensor([out, kept])
    return found


def measure(folder: Path, part: int = 0, parts: int = 1) -> None:
    """Truth and maps of every prompt, a file each; what is there already is kept."""
    model = load()
    cases = list(model.cases(prompts()))
    pool = torch.cat([case.ids for case in cases])
    folder.mkdir(exist_ok=True)
    order = torch.randperm(len(cases), generator=torch.Generator().manual_seed(0)).tolist()  # a part done is a sample
    for number in [number for number in order if number % 3][part::parts]:
        case = cases[number]
        true, maps_, lines = (folder / f"{kind}{number}.pt" for kind in ("truth", "maps", "curves"))
        if not true.exists():
            wide = truth(model, case, pool, window=3) if len(case.ids) > 4 else None
            torch.save((case, truth(model, case, pool), wide), true)
        if not maps_.exists():
            torch.save(maps(model, case), maps_)
        if not lines.exists():
            torch.save(curves(model, case, torch.load(maps_)["contrast"], pool), lines)
        print(number, case.prompt.text, file=sys.stderr, flush=True)
    if part == 0 and not (folder / "encoder.pt").exists():
        torch.save(measure_encoder(), folder / "encoder.pt")


def measure_encoder() -> list[tuple[Case, dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """Case, truth and maps of each sentence, with MiniLM."""
    from tests.real_models import minilm

    model, tokenizer = minilm()
    encoder = Encoder(model, tokenizer)
    cases = encoder.cases(sentences())
    pool = torch.cat([case.ids[1:-1] for case in cases])
    return [
        (
            case,
            truth(encoder, case, pool),
            {name: map_(encoder, case, encoder.target(case)).detach().double() for name, map_ in METHODS.items()},
        )
        for case in cases
    ]


if __name__ == "__main__":
    task, place, *rest = sys.argv[1:]
    if task == "measure":
        measure(Path(place), *map(int, rest))
    else:
        from .token_report import report

        report(Path(place))
