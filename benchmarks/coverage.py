"""Relevance on architecture families: model x rulebook -> ledger residual, share of the inputs, time.

python -m benchmarks.coverage > benchmarks/coverage.md

The models are those of the tests, tiny and with random weights, biases and all. The share is what the inputs hold of
the score; the rest went to additive constants and rules. The ratio is over one forward and backward pass of
the same model: at this size it measures Python per node; benchmarks/relevance.md has real sizes. Operations without a
rule are listed in benchmarks/operations.md.
"""

import platform
import warnings

import torch

from layerlens import relevance
from layerlens.errors import LayerLensError
from layerlens.progress import track
from layerlens.targets.outputs import main_output
from layerlens.targets.target import as_target
from tests.cases import CASES
from tests.families import FAMILIES, family

from .timing import medians

BOOKS = ("epsilon", "attn", "epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1_flat")


def rows() -> dict[str, tuple[torch.nn.Module, object, object]]:
    """Every model with its input and target."""
    found = {name: family(name) for name in FAMILIES}
    return found | {f"case {name}": (case.build(), case.example(), case.target) for name, case in CASES.items()}


def floor(model: torch.nn.Module, x: object, target: object) -> object:
    """One forward and one backward pass to all parameters, which any input allows, token ids too."""
    score = as_target(target)

    def run() -> None:
        output = model(**x) if isinstance(x, dict) else model(*x) if isinstance(x, tuple) else model(x)
        assert main_output(output) is not None
        torch.autograd.grad(score(output).sum(), [p for p in model.parameters() if p.requires_grad], allow_unused=True)

    return run


def main() -> None:
    """Print the table as Markdown."""
    print(f"# Relevance by architecture\n\ntorch {torch.__version__}, {torch.get_num_threads()} threads, ", end="")
    print(f"{platform.machine()}. Made by `python -m benchmarks.coverage`.\n\n{__doc__.split(chr(10) * 2)[2]}")
    print("`residual / share / ratio` by rulebook; a refusal names its reason below the table.\n")
    print("| model | " + " | ".join(BOOKS) + " |\n| --- |" + " --- |" * len(BOOKS))
    refusals: dict[str, list[str]] = {}
    for name, (model, x, target) in track(rows().items(), "families"):
        cells = []
        for book in BOOKS:
            run = lambda model=model, x=x, target=target, book=book: relevance(model, x, target=target, rules=book)  # noqa: E731
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", UserWarning)
                    result = run()
            except LayerLensError as error:
                refusals.setdefault(str(error).split(", so ")[0], []).append(name)
                cells.append("refused")
                continue
            ledger = result.ledger
            share = float(ledger.inputs.sum() / ledger.score.sum())
            try:
                timed = medians({"floor": floor(model, x, target), "ours": run}, runs=3)
                ratio = f"{timed['ours'] / timed['floor']:.1f}"
            except RuntimeError:  # a model that keeps a part of its graph from call to call has no plain gradient twice
                ratio = "-"
            cells.append(f"{float(ledger.relative.max()):.0e} / {share:.2f} / {ratio}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    for reason, names in refusals.items():
        print(f"\nRefused: {reason} ({', '.join(dict.fromkeys(names))}).")


if __name__ == "__main__":
    main()
