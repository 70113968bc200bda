"""References: several baselines, over which an expectation is taken."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from layerlens.errors import OptionError
from layerlens.inputs.batches import Data
from layerlens.inputs.inputs import Inputs
from layerlens.inputs.tables import is_frame, read_table
from layerlens.model.borrowed import seed_torch
from layerlens.model.trees import describe

from ..leaves.leaves import leaf_name
from ..scorer import Leaves, Scorer
from .baselines import NAMED, Baseline, baselines, noise

Baselines: TypeAlias = (
    "torch.Tensor | np.ndarray[Any, Any] | Mapping[str, Any] | Sequence[Baseline] | Data | Dataset[Any] | "
    "DataLoader[Any] | Callable[..., Any] | None"
)
"""What may be given as references; `listed_baselines` says how it is read, `_gathered` how a data set or a function."""

DRAWN = 8
"""References that are drawn when none are given."""

MOST = 1000
"""Most references that are read from a data set, as each costs passes."""


def listed_baselines(given: Baselines) -> list[Baseline] | None:
    """Return one baseline after the other, as `baselines` reads them; None when they are to be drawn.

    Args:
        given: None, to draw normal noise with the mean and the deviation of each sample; an array or a DataFrame whose
            first axis counts references, each shaped like a sample; a dict of those by input name; or a sequence of
            anything that `baselines` reads, such as `("zero", "mean", "blur")`.

    Raises:
        OptionError: when it is something else, or is empty.
    """
    if given is None:
        return None
    listed: list[Baseline]
    given = read_table(given)[0].copy() if is_frame(given) else given
    if isinstance(given, Mapping):
        parts = {name: list(listed_baselines(part) or ()) for name, part in given.items()}
        counts = {len(part) for part in parts.values()}
        if len(counts) != 1:
            raise OptionError(f"references of several inputs must be as many for each, got {sorted(counts)}.")
        listed = [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
    elif isinstance(given, (torch.Tensor, np.ndarray)):
        array = torch.as_tensor(given)
        listed = list(array) if array.ndim else []
    elif isinstance(given, Sequence) and not isinstance(given, str):
        listed = list(given)
    else:
        raise OptionError(
            f"cannot read references from {describe(given)}. Give an array (references, ...) of samples, a dict of "
            "those by input name, a data set, a function of the inputs, or a list of baselines."
        )
    if not listed:
        raise OptionError("there are no references: give one or more, or None to draw noise.")
    return listed


def references(scorer: Scorer, given: Baselines, seed: int) -> tuple[list[Leaves], str]:
    """Return each reference for the whole batch, shaped like the leaves, and a name for the settings.

    Raises:
        OptionError: when one does not fit the input; says which arrays do.
    """
    wanted = listed_baselines(_gathered(scorer, given, seed))
    if wanted is None:
        return list(_drawn(scorer, seed)), f"noise ({DRAWN})"
    named = wanted[0] if isinstance(wanted[0], Mapping) else {}
    known = {leaf_name(scorer.inputs, scorer.leaves, name, NAMED) for name in named}
    missing = [name for name in scorer.leaves if named and name not in known]
    zero = f", zero for {', '.join(missing)}" if missing else ""
    try:
        return [baselines(scorer, spec)[0] for spec in wanted], f"given ({len(wanted)}{zero})"
    except OptionError as error:
        tensors = scorer.inputs.tensors()
        shapes = {name: tensors.get(name, leaf.value).shape[1:] for name, leaf in scorer.leaves.items()}
        arrays = {name: f"(references, {', '.join(map(str, shape))})" for name, shape in shapes.items()}
        by_name = ", ".join(f"{name!r}: {array}" for name, array in arrays.items())
        why = f"{error} ".partition(". ")[0]
        raise OptionError(
            f"baselines= holds {len(wanted)} references, and one does not fit: {why}. "
            f"Give an array {f'by input, {{{by_name}}}' if len(arrays) > 1 else arrays.popitem()[1]}."
        ) from error


def _gathered(scorer: Scorer, given: Any, seed: int) -> Any:
    """Return what a function returns for the inputs, or all samples of a data set; others as they are.

    A function takes the inputs, of several a tuple, or nothing, and returns an array `(references, ...)`, of several
    inputs a tuple or a dict of those, or anything else that may be given. Its draws are seeded.

    Raises:
        OptionError: when a data set has more than `MOST` samples, or others than the leaves; or a function has no
            signature.
    """
    leaves, tensors = scorer.leaves, scorer.inputs.tensors()
    if callable(given) and not isinstance(given, (Dataset, DataLoader, Sequence, Mapping)):
        inputs = tuple(tensors.get(name, leaf.value).detach().clone() for name, leaf in leaves.items())
        seed_torch(seed)
        try:
            takes = bool(inspect.signature(given).parameters)
        except ValueError as error:
            raise OptionError(
                f"baselines={given!r:.80} does not say whether it takes the inputs: give lambda x: ... or lambda: ..."
            ) from error
        given = given(inputs if len(inputs) > 1 else inputs[0]) if takes else given()
        if isinstance(given, tuple) and len(given) == len(leaves):
            return dict(zip(leaves, given, strict=True)) if len(given) > 1 else given[0]
    if not isinstance(given, (Data, Dataset, DataLoader)):
        return given
    found: dict[str, list[torch.Tensor]] = {}
    for batch in Data.of(given).batches(scorer.model, "baselines"):
        own = batch.inputs.named_for(scorer.model, scorer.forward)
        for name, tensor in own.tensors().items():
            found.setdefault(_known_name(scorer, own, name), []).append(tensor)
        if batch.start + batch.inputs.batch > MOST:
            raise OptionError(
                f"baselines= is {describe(given)} of more than {MOST} samples, each of which costs passes: draw some, "
                "baselines=torch.utils.data.Subset(dataset, range(100))."
            )
    others = tensors.keys() - leaves.keys()  # masks, or inputs that are held: those of x stay
    joined = {name: torch.cat(parts) for name, parts in found.items() if len(found) == 1 or name not in others}
    if not joined:
        raise OptionError(
            f"baselines= is {describe(given)} of inputs {', '.join(found)}, and references of {', '.join(leaves)} are "
            "needed: give an array of those."
        )
    return joined if len(joined) > 1 or len(leaves) > 1 else next(iter(joined.values()))


def _known_name(scorer: Scorer, own: Inputs, name: str) -> str:
    """Return the name that an input of a data set has among those of a scorer, by position or by parameter."""
    names, known = scorer.inputs.names, scorer.inputs.tensors()
    if name.isdecimal() and int(name) < len(own.names) and own.names[int(name)] in known:
        return own.names[int(name)]
    return str(names.index(name)) if name in names and name not in known else name


def _drawn(scorer: Scorer, seed: int) -> Iterator[Leaves]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(DRAWN):
        yield {name: noise(leaf.value, generator) for name, leaf in scorer.leaves.items()}
