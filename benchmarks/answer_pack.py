"""All contexts in one small file: what the report needs, so that it is made again without the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from layerlens.files import whole
from layerlens.progress import track

from .answer_contexts import contexts
from .answer_data import MAPS, Measured, answer
from .answer_model import Prompt, log_probability, logit, maps
from .answer_truth import Case


def case_of(one: Measured) -> Case:
    """What the report needs of a context."""
    scores = logit(log_probability(one.odds))
    head = one.number, one.kind, one.forced, one.text, one.wrong, len(one.tokens)
    return Case(*head, one.masks, scores, one.maps)


def pack(folder: Path, path: Path) -> None:
    """Write the contexts of a folder into one file."""
    save([case_of(Measured.load(file)) for file in sorted(folder.glob("*.npz"))], path)


def save(cases: Sequence[Case], path: Path) -> None:
    """Write contexts into one file; the masks as bits, and NaN where a map was not made."""
    names = sorted({name for case in cases for name in case.maps})
    rows = [
        np.stack([case.maps.get(name, np.full(case.sources, np.nan)) for name in names]).astype(np.float32)
        for case in cases
    ]
    found = {name: np.array([getattr(case, name) for case in cases]) for name in Case.HEAD}
    found |= {
        "sources": np.array([case.sources for case in cases]),
        "ablations": np.array([len(case.masks) for case in cases]),
        "masks": np.packbits(np.concatenate([case.masks.ravel() for case in cases])),
        "scores": np.concatenate([case.scores for case in cases]).astype(np.float32),
        "methods": np.array(names),
        "maps": np.concatenate(rows, axis=1),
    }
    with whole(path) as file:
        np.savez_compressed(file, **found)


def add_maps(path: Path) -> None:
    """Make the maps that contexts of a file lack; can be stopped at any time and resumed.

    Raises:
        ValueError: if the model now answers otherwise than when the context was measured.
    """
    from tests.real_models import smollm2

    torch.set_num_threads(1)
    (model, tokenizer), every, cases = smollm2(), contexts(), unpack(path)
    model.requires_grad_(False)
    order = np.random.default_rng(0).permutation(len(cases)).tolist()  # what is done early is a sample
    for case in track([cases[place] for place in order], "maps"):
        names = [name for name in MAPS if name not in case.maps]
        if not names:
            continue
        prompt = Prompt(model, tokenizer, every[case.number])
        _, text, _, tokens = answer(prompt, every[case.number], case.number)
        if (text, len(tokens)) != (case.text, case.length):
            raise ValueError(f"context {case.number} was measured with the answer {case.text!r}; it is {text!r} now.")
        case.maps |= maps(prompt, tokens, names)
        save(cases, path)


def unpack(path: Path) -> list[Case]:
    """Read what `save` wrote."""
    with np.load(path) as file:
        sources, ablations = file["sources"], file["ablations"]
        bits = np.split(np.unpackbits(file["masks"]).astype(bool), np.cumsum(sources * ablations))
        scores = np.split(file["scores"].astype(float), np.cumsum(ablations))
        maps = np.split(file["maps"].astype(float), np.cumsum(sources), axis=1)
        cases = []
        for row, (width, count) in enumerate(zip(sources, ablations, strict=True)):
            head = [file[name][row].item() for name in Case.HEAD]
            named = zip(file["methods"].tolist(), maps[row], strict=True)
            own = {name: values for name, values in named if np.isfinite(values).all()}
            cases.append(Case(*head, bits[row].reshape(count, width), scores[row], own))
    return cases
