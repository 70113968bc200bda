"""References: several baselines, over which an expectation is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from layerlens.analyzers.common.features.baselines import Baseline, baselines, noise
from layerlens.analyzers.common.scorer import Leaves, Scorer
from layerlens.errors import OptionError
from layerlens.model.trees import describe

Baselines: TypeAlias = "torch.Tensor | np.ndarray[Any, Any] | Mapping[str, Any] | Sequence[Baseline] | None"
"""What may be given as references; `listed_baselines` says how it is read."""

DRAWN = 8
"""References that are drawn when none are given."""


def listed_baselines(given: Baselines) -> list[Baseline] | None:
    """Return one baseline after the other, as `baselines` reads them; None when they are to be drawn.

    Args:
        given: None, to draw normal noise with the mean and the deviation of each sample; an array whose first axis
            counts references, each shaped like a sample; a dict of those by input name; or a sequence of anything that
            `baselines` reads, such as `("zero", "mean", "blur")`.

    Raises:
        OptionError: when it is something else, or is empty.
    """
    if given is None:
        return None
    listed: list[Baseline]
    if isinstance(given, Mapping):
        counts = {len(torch.as_tensor(part)) for part in given.values()}
        if len(counts) != 1:
            raise OptionError(f"references of several inputs must be as many for each, got {sorted(counts)}.")
        listed = [{name: torch.as_tensor(part)[k] for name, part in given.items()} for k in range(counts.pop())]
    elif isinstance(given, (torch.Tensor, np.ndarray)):
        array = torch.as_tensor(given)
        listed = list(array) if array.ndim else []
    elif isinstance(given, Sequence) and not isinstance(given, str):
        listed = list(given)
    else:
        raise OptionError(
            f"cannot read references from {describe(given)}. Give an array (references, ...) of samples, a dict of "
            "those by input name, or a list of baselines."
        )
    if not listed:
        raise OptionError("there are no references: give one or more, or None to draw noise.")
    return listed


def references(scorer: Scorer, given: Baselines, seed: int) -> tuple[list[Leaves], str]:
    """Return each reference for the whole batch, shaped like the leaves, and a name for the settings."""
    wanted = listed_baselines(given)
    if wanted is None:
        return list(_drawn(scorer, seed)), f"noise ({DRAWN})"
    return [baselines(scorer, spec)[0] for spec in wanted], f"given ({len(wanted)})"


def _drawn(scorer: Scorer, seed: int) -> Iterator[Leaves]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(DRAWN):
        yield {name: noise(leaf.value, generator) for name, leaf in scorer.leaves.items()}
