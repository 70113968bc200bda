"""Operations without a relevance rule: every differentiable function of torch with the inputs of torch's own tests.

python -m benchmarks.operations > benchmarks/operations.md     (needs the package expecttest, as torch's tests do)

Each function is run in float64, with one input, or several, computed from a signal and the others constant. A row is
missing where `relevance` warns of an operation, and the books are open where the ledger's residual is above 1e-9.
Functions of which no relevance can leave (norms, steps, quotients by a signal) are refused with the reason.
"""

import platform
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from layerlens import relevance
from layerlens.errors import RelevanceError
from layerlens.progress import track

SAMPLES = 12
NO_RULE = "no relevance rule is known for "
CONVERSIONS = {"bfloat16", "half", "float", "chalf", "cfloat"}
"""Functions that round: their ledger closes to what they round to."""


class Applied(torch.nn.Module):
    """A function of constants and signals, and a weighted sum of all that it returns."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], places: list[int]) -> None:
        super().__init__()
        flat, self.form = tree_flatten(arguments)
        self.flat = [one.detach() if isinstance(one, torch.Tensor) else one for one in flat]
        self.function, self.places = function, places

    def forward(self, *signals: torch.Tensor) -> torch.Tensor:
        """Return the sum, `(1,)`."""
        flat = [one.clone() if isinstance(one, torch.Tensor) else one for one in self.flat]
        for place, signal in zip(self.places, signals, strict=True):
            flat[place] = signal[0] * 1.0
        arguments, options = tree_unflatten(flat, self.form)
        total = torch.zeros(1, dtype=torch.float64)
        for part in tree_leaves(self.function(*arguments, **options)):
            if isinstance(part, torch.Tensor) and (part.is_floating_point() or part.is_complex()):
                part = (torch.view_as_real(part.resolve_conj()) if part.is_complex() else part).reshape(-1)
                total = total + (part * torch.linspace(-1, 2, len(part), dtype=torch.float64)).sum()
        return total


def trials(function: Callable[..., Any], samples: list[Any]) -> Iterator[tuple[float, str]]:
    """Yield the residual, and the operations without a row, of each choice of signals that is not refused."""
    for sample in samples:
        arguments = ((sample.input, *sample.args), sample.kwargs)
        flat, _ = tree_flatten(arguments)
        real = [i for i, one in enumerate(flat) if isinstance(one, torch.Tensor) and one.dtype == torch.float64]
        real = [i for i in real if flat[i].layout == torch.strided and flat[i].numel()]
        for places in [real] if len(real) < 2 else [real[:1], real[1:2], real]:
            model = Applied(function, arguments, places)
            signals = tuple(flat[place].detach()[None].clone() for place in places)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    result = relevance(model, signals, target=lambda out: out, rules="epsilon")
                except (RelevanceError, ValueError, RuntimeError, NotImplementedError):
                    continue  # refused with a reason, or by torch itself
            named = [str(one.message) for one in caught if str(one.message).startswith(NO_RULE)]
            yield float(result.ledger.relative.max()), named[0][len(NO_RULE) :].split(":")[0] if named else ""


def main() -> None:
    """Print what has no row, and what has one but does not close, as Markdown."""
    missing: dict[str, set[str]] = {}
    open_books: dict[str, float] = {}
    seen = set()
    for op in track(op_db, "functions"):
        if not op.supports_autograd or torch.float64 not in op.supported_dtypes("cpu") or op.name in CONVERSIONS:
            continue
        samples = list(op.sample_inputs("cpu", torch.float64))[:SAMPLES]
        for function in {op.op, op.method_variant} - {None}:
            for residual, unknown in trials(function, samples):
                seen.add(op.name)
                if unknown:
                    missing.setdefault(unknown, set()).add(op.name)
                elif residual > 1e-9:
                    open_books[op.name] = max(open_books.get(op.name, 0.0), residual)
    print(f"# Operations without a relevance rule\n\ntorch {torch.__version__}, {platform.machine()}. ", end="")
    print(f"Made by `python -m benchmarks.operations`.\n\n{__doc__.split(chr(10) * 2)[2]}\n")
    print(
        f"{len(seen)} functions pass relevance. These operations are named in a warning, or refused by `strict=True`:\n"
    )
    print("| operation | functions |\n| --- | --- |")
    for unknown, names in sorted(missing.items()):
        print(f"| {unknown} | {', '.join(f'`{name}`' for name in sorted(names))} |")
    print("\nThese have a rule, and the ledger shows a residual for some of their arguments:\n")
    print("| function | largest residual |\n| --- | --- |")
    for name, residual in sorted(open_books.items()):
        print(f"| `{name}` | {residual:.0e} |")


if __name__ == "__main__":
    main()
