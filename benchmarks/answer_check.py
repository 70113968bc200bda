"""Whether `explain_answer` gives the values that the benchmark computes for the same ablations, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from layerlens import explain_answer
from layerlens.analyzers.generation.source_regression import fit, masks

from .answer_contexts import contexts
from .answer_methods import PRIOR, SWEEP
from .answer_model import Prompt, logit, maps

PASSES = 12


def check(numbers: Sequence[int]) -> str:
    """The largest difference of values and standard errors, by context; not for lists and tables.

    There the line break before an item is a part of it here, and of no source in `explain_answer`.
    """
    from tests.real_models import smollm2

    torch.set_num_threads(1)
    model, tokenizer = smollm2()
    model.requires_grad_(False)
    rows = []
    for number in numbers:
        context = contexts()[number]
        prompt = Prompt(model, tokenizer, context)
        answer, sources = prompt.read(context.answer), len(prompt.pieces)
        body = f"Context:{''.join(context.sources)}\n\nQuery: {context.question}"
        texts = [source.strip() for source in context.sources]
        chat = [{"role": "user", "content": body}]
        found = explain_answer(
            model, chat, context.answer, sources=texts, passes=PASSES, tokenizer=tokenizer, progress=False
        )
        expected = maps(prompt, answer, (PRIOR,))[PRIOR][None]
        kept = np.concatenate([np.ones((1, sources), dtype=bool), masks(PASSES - SWEEP, sources, expected, 0)])
        kept = np.array(list(dict.fromkeys(map(tuple, kept.tolist()))))
        scores = []
        for mask in kept:
            with torch.no_grad():
                logits = model(torch.tensor([prompt.ids(mask) + answer])).logits[0, -len(answer) - 1 : -1].double()
            scores.append(float(logits.log_softmax(dim=1)[range(len(answer)), answer].sum()))
        values, errors, _ = fit(kept, logit(np.array(scores))[:, None], expected)
        apart = np.abs(found.values.numpy() - values).max(), np.abs(found.error.numpy() - errors).max()
        size = np.abs(values).max()
        rows.append(
            f"context {number}: values differ by {apart[0]:.1e}, standard errors by {apart[1]:.1e}, of {size:.1f}"
        )
    return "\n".join(rows)
