"""Answers of a trained model: a planted fact is the source that made them."""

import pytest
import torch

from layerlens import Lens
from tests.real_models import smollm2

pytestmark = pytest.mark.slow

FACTS = (
    "The library opens at nine.", "The harbor has a red lighthouse.", "Bread is baked every morning.",
    "The school choir sings on Fridays.",
)  # fmt: skip


@pytest.mark.parametrize("by", ["auto", "relevance", "leave_one_out", "ablation"])
@pytest.mark.parametrize(
    "fact, question, answer, place",
    [
        ("Maria keeps her violin in the attic.", "Where does Maria keep her violin?", "In the attic.", 2),
        ("The password of the old mill is tangerine.", "What is the password of the mill?", "Tangerine.", 4),
        ("Doctor Okafor came to town in 1911.", "When did Okafor come to town?", "In 1911.", 0),
    ],
)
def test_a_planted_fact_is_the_top_source(by, fact, question, answer, place):
    model, tokenizer = smollm2()
    context = " ".join([*FACTS[:place], fact, *FACTS[place:]])
    chat = [{"role": "user", "content": question}]
    found = Lens(model, tokenizer=tokenizer).explain_answer(chat, answer, context=context, by=by)
    assert len(found.sources) == 5 and found.top(1)[0][0] == fact
    if found.rest:
        booked = found.values.sum() + sum(amount.sum() for amount in found.rest.values())
        torch.testing.assert_close(booked, found.scores.sum(), rtol=1e-6, atol=1e-6)
