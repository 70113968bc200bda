"""Answers with their sources, against runs by hand of the prompt without them."""

import numpy as np
import pytest
import torch
from torch import nn

import layerlens
from layerlens import Lens, errors
from layerlens.analyzers.generation.answer_scores import AnswerScorer
from layerlens.analyzers.generation.source_regression import fit, masks
from tests.analyzers.generation.tiny_texts import llama, log_p, t5, tokenizer
from tests.snapshot import Snapshot

PROMPT = "The cat sat. A dog ran to the old house! It was a lot.\n\nWhere is the town?"
SENTENCES = ("The cat sat.", "A dog ran to the old house!", "It was a lot.", "Where is the town?")
ANSWER = " The cat. Then love"
WITHOUT = (
    "A dog ran to the old house! It was a lot.\n\nWhere is the town?",
    "The cat sat. It was a lot.\n\nWhere is the town?",
    "The cat sat. A dog ran to the old house!\n\nWhere is the town?",
    "The cat sat. A dog ran to the old house! It was a lot.",
)
CHAT = [
    {"role": "system", "content": "The cat sat. A dog ran to the old house!  "},
    {"role": "user", "content": "Where is the town? "},
]


@pytest.fixture
def lens():
    return Lens(llama(), tokenizer=tokenizer())


def ids_of(text):
    return tokenizer()(text, add_special_tokens=False)["input_ids"]


def test_leaving_a_sentence_out_is_the_prompt_without_it(lens):
    found = lens.explain_answer(PROMPT, ANSWER, parts="sentence", by="leave_one_out", batch_size=3)
    assert (found.sources, found.answer, found.parts) == (SENTENCES, ANSWER, (" The cat.", " Then love"))
    ids, first = ids_of(ANSWER), len(ids_of(" The cat."))

    def by_part(text):
        tokens = log_p(text, ids)
        return torch.stack([tokens[:first].sum(), tokens[first:].sum()])

    whole = by_part(PROMPT)
    torch.testing.assert_close(found.scores, whole)
    expected = torch.stack([whole - by_part(text) for text in WITHOUT], dim=1)
    torch.testing.assert_close(found.values, expected)
    assert found.standard_errors is None and found.passes == 5
    torch.testing.assert_close(found.predict([True] * 4), whole)
    torch.testing.assert_close(found.predict([True, False, True, True]), by_part(WITHOUT[1]))
    assert found.top(1, part="Then love")[0][1] == float(expected[1].max())


def test_ablation_is_the_regression_of_prompts_by_hand(lens):
    found = lens.explain_answer(PROMPT, ANSWER, by="ablation", passes=9, batch_size=4, seed=3)
    kept = np.concatenate([np.ones((1, 4), dtype=bool), masks(8, 4, None, 3)])
    gaps, ids = ("", " ", " ", "\n\n"), ids_of(ANSWER)
    logits = []
    for row in kept.tolist():
        pairs = [(gap, text) for gap, text, stays in zip(gaps, SENTENCES, row, strict=True) if stays]
        text = "".join(gap * (place > 0) + text for place, (gap, text) in enumerate(pairs))
        probability = log_p(text, ids).sum().exp()
        logits.append([float(torch.log(probability / (1 - probability)))])
    values, spread, _ = fit(kept, np.array(logits))
    np.testing.assert_allclose(found.numpy(), values, rtol=1e-6)
    np.testing.assert_allclose(found.standard_errors.numpy(), spread, rtol=1e-6)
    assert (found.passes, found.scale) == (9, "logit")
    assert found.predict(kept).shape == (9, 1) and bool((found.predict(kept) < 0).all())


@pytest.mark.parametrize("parts", ["answer", "word", "token"])
def test_relevance_adds_up_to_the_score(lens, parts):
    found = lens.explain_answer(PROMPT, ANSWER, sources="word", parts=parts, by="relevance")
    booked = found.values.sum(dim=1) + torch.stack(list(found.rest.values())).sum(dim=0)
    torch.testing.assert_close(booked, found.scores)
    torch.testing.assert_close(found.scores.sum(), log_p(PROMPT, ids_of(ANSWER)).sum())
    assert float(found.rest["rounding"].abs().max()) < 1e-5  # its norms compute in float32
    assert found.passes == 1 + 2 * len(found.parts)
    assert "".join(found.parts) == ANSWER and len(found.sources) == len(PROMPT.split())


def test_a_batch_of_prompts_gives_what_each_gives_alone(lens):
    prompts, answers = [PROMPT, "Love is a lot. The town ran."], [ANSWER, " a cat"]
    both = lens.explain_answer(prompts, answers, passes=8, seed=1)
    for prompt, answer, found in zip(prompts, answers, both, strict=True):
        alone = lens.explain_answer(prompt, answer, passes=8, seed=1, batch_size=1)
        torch.testing.assert_close(found.values, alone.values)
        assert found.passes == alone.passes <= 8 and found.method == "relevance + ablation"


def test_until_stops_early_with_the_same_ablations(lens):
    few = lens.explain_answer(PROMPT, ANSWER, by="ablation", passes=12, until=1e6)
    assert few.passes == 4
    all_of_them = lens.explain_answer(PROMPT, ANSWER, by="ablation", passes=12, until=1e-9)
    assert all_of_them.passes == 12


def test_sources_of_a_chat_are_in_its_messages(lens):
    found = lens.explain_answer(CHAT, ANSWER.strip(), by="leave_one_out")
    assert found.sources == (*SENTENCES[:2], SENTENCES[3])
    assert found.prompt == (
        "<s>system: The cat sat. A dog ran to the old house!\n<s>user: Where is the town?\n<s>assistant: "
    )
    ids = ids_of(ANSWER.strip())
    whole = log_p(found.prompt, ids, special=False).sum()
    without = "<s>system: The cat sat.\n<s>user: Where is the town?\n<s>assistant: "
    torch.testing.assert_close(found.values[0, 1], whole - log_p(without, ids, special=False).sum())
    tokens = lens.explain_answer(CHAT, "a", sources="token", by="relevance")
    assert "".join(tokens.sources).replace(" ", "") == "".join(found.sources).replace(" ", "")


def test_the_context_holds_the_sources_and_the_rest_stays(lens):
    found = lens.explain_answer("Where is the town?", ANSWER, context=" ".join(SENTENCES[:2]), by="leave_one_out")
    assert found.sources == SENTENCES[:2]
    ids = ids_of(ANSWER)
    texts = [f"{context}\n\nWhere is the town?" for context in (" ".join(SENTENCES[:2]), *SENTENCES[1::-1])]
    assert found.prompt == texts[0]
    scores = [log_p(text, ids).sum() for text in texts]
    torch.testing.assert_close(found.values[0], scores[0] - torch.stack(scores[1:]))
    chat = lens.explain_answer(CHAT, "a", context="A dog ran to the old house!", by="leave_one_out")
    assert chat.sources == SENTENCES[1:2]


def test_an_encoder_decoder_has_its_sources_in_the_encoder():
    lens, ids = Lens(t5(), tokenizer=tokenizer()), ids_of(ANSWER)
    found = lens.explain_answer(PROMPT, ANSWER, by="leave_one_out", batch_size=8)
    scores = torch.stack([log_p(text, ids, model=t5()).sum() for text in (PROMPT, *WITHOUT)])
    torch.testing.assert_close(found.values[0], scores[0] - scores[1:])
    swept = lens.explain_answer(PROMPT, ANSWER, by="relevance", parts="word")
    torch.testing.assert_close(swept.values.sum() + sum(one.sum() for one in swept.rest.values()), scores[0])
    assert float(swept.rest["answer so far"].abs().sum()) > 0
    written = lens.explain_answer(PROMPT, by="attention", max_new_tokens=5)
    out = t5().generate(**tokenizer()([PROMPT], return_tensors="pt"), do_sample=False, max_new_tokens=5)
    assert written.answer == tokenizer().decode(out[0, 1:].tolist())
    assert bool((written.values > 0).all()) and float(written.values.sum()) < 1


def test_an_answer_is_written_by_greedy_decoding(lens):
    found = lens.explain_answer(PROMPT, by="relevance", max_new_tokens=6)
    encoding = tokenizer()([PROMPT], return_tensors="pt")
    out = llama().generate(**encoding, do_sample=False, max_new_tokens=6)[0, encoding["input_ids"].shape[1] :]
    assert found.answer == tokenizer().decode(out.tolist()) and found.settings["ended"] is False
    by_hand = Lens(llama(), tokenizer=tokenizer(), forward=lambda model, **given: model(**given))
    assert by_hand.explain_answer(PROMPT, by="relevance", max_new_tokens=6).answer == found.answer


def test_bytes_of_one_letter_are_one_source(lens):
    found = lens.explain_answer("北京 été 👍🏽.", " 好", sources="token", parts="token", by="relevance")
    assert "".join(found.sources) == "北京été👍🏽."
    assert found.sources[:2] == ("北", "京")
    assert "".join(found.parts) == " 好" and len(found.parts) < len(ids_of(" 好"))
    left = lens.explain_answer("北京 été 👍🏽.", " 好", sources="word", by="leave_one_out")
    assert left.sources == ("北", "京", "été", "👍🏽.")


def test_gradients_and_attention_are_references(lens):
    for by, passes in (("input_x_gradient", 5), ("attention", 2)):
        found = lens.explain_answer(PROMPT, ANSWER, parts="sentence", by=by)
        assert found.values.shape == (2, 4) and found.passes == passes and bool(found.values.isfinite().all())
    ids, before, first = ids_of(PROMPT + ANSWER)[:-1], len(ids_of(PROMPT)), len(ids_of(SENTENCES[0]))
    weights = layerlens.attention(llama(), {"input_ids": torch.tensor([ids])}, heads="mean").weights.values()
    rows = torch.stack([one[0, 0, before - 1 :, :first].sum(dim=1) for one in weights]).mean(dim=0)
    cut = len(ids_of(" The cat."))
    torch.testing.assert_close(found.values[:, 0], torch.stack([rows[:cut].mean(), rows[cut:].mean()]))


def test_the_model_is_left_as_it_was(lens, monkeypatch):
    before = Snapshot(llama(), None)
    lens.explain_answer(PROMPT, max_new_tokens=3, passes=6)
    before.check()

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(AnswerScorer, "scores", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lens.explain_answer(PROMPT, ANSWER)
    before.check()


class Reversed(nn.Module):
    """Sees padding on the right: every place reads all others."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(290, 6).double(), nn.Linear(6, 290).double()

    def forward(self, input_ids, attention_mask=None):
        read = self.embedding(input_ids)
        return self.head((read.cumsum(dim=1) + read.mean(dim=1, keepdim=True)).tanh())


def test_a_model_that_sees_padding_gets_one_prompt_at_a_time():
    torch.manual_seed(0)
    lens = Lens(Reversed(), tokenizer=tokenizer())
    with pytest.warns(UserWarning, match="run one by one"):
        together = lens.explain_answer(PROMPT, ANSWER, by="leave_one_out", batch_size=8)
    alone = lens.explain_answer(PROMPT, ANSWER, by="leave_one_out", batch_size=1)
    torch.testing.assert_close(together.values, alone.values)


def test_what_cannot_be_read_is_refused(lens):
    refused = [
        ({"prompt": PROMPT, "by": "relevence"}, errors.OptionError, "Closest: relevance"),
        ({"prompt": PROMPT, "sources": "sentences"}, errors.OptionError, "Closest: sentence"),
        ({"prompt": PROMPT, "sources": ["The bat"]}, errors.InputError, "not there"),
        ({"prompt": "a b a", "sources": ["a"]}, errors.InputError, "there 2 times"),
        ({"prompt": PROMPT, "sources": [(0, 8), "cat sat"]}, errors.InputError, "overlap"),
        ({"prompt": CHAT, "sources": [(0, 30)]}, errors.InputError, "inside of a message"),
        ({"prompt": [PROMPT, PROMPT], "answer": "a"}, errors.InputError, "one for each prompt"),
        ({"prompt": 3}, errors.InputError, "messages of a chat"),
        ({"prompt": PROMPT, "until": 0}, errors.OptionError, "standard error above 0"),
        ({"prompt": PROMPT, "answer": ""}, errors.InputError, "no tokens"),
    ]
    for given, kind, text in refused:
        with pytest.raises(kind, match=text):
            lens.explain_answer(**{"answer": ANSWER, **given})
    with pytest.raises(errors.InputError, match="needs a tokenizer"):
        layerlens.explain_answer(llama(), PROMPT, ANSWER)
    with pytest.warns(UserWarning, match="continues the last word"):
        lens.explain_answer("The cat", "sat", by="leave_one_out")


def test_the_result_reads_and_is_kept(lens, tmp_path):
    found = lens.explain_answer(PROMPT, ANSWER, parts="sentence", passes=8)
    text = repr(found)
    assert "The cat." in text and "passes" in text and "+-" in text and SENTENCES[1] in text
    assert "logit" in found.explain()
    table = found.to_pandas()
    assert list(table.columns) == ["part", "source", "value", "standard error"] and len(table) == 8
    again = layerlens.load(found.save(tmp_path / "answer"))
    assert again.sources == found.sources and torch.equal(again.values, found.values)
