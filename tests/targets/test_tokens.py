"""Targets of language models, and of models that answer at every place of an image."""

import pytest
import torch
from torch import nn

import layerlens
from layerlens.errors import TargetError
from layerlens.targets.tokens import Vocabulary

WORDS = ["<pad>", " cat", " dog", " sat", " ran", "the"]


class Tokenizer:
    """Tokens are words with the space before them."""

    def __len__(self):
        return len(WORDS)

    def _ids(self, text):
        ids = []
        while text:
            index = next(index for index, word in enumerate(WORDS) if text.startswith(word))
            ids.append(index)
            text = text[len(WORDS[index]) :]
        return ids

    def __call__(self, text, add_special_tokens=True, return_tensors=None, padding=False):
        if return_tensors is None:
            return {"input_ids": self._ids(text)}
        rows = [self._ids(one) for one in text]
        longest = max(map(len, rows))
        return {
            "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        }

    def decode(self, ids):
        return "".join(WORDS[index] for index in ids)


class Model(nn.Module):
    """A causal model of bags of words: logits of the next token from the mean of all words so far."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(len(WORDS), 4).double(), nn.Linear(4, len(WORDS)).double()

    def forward(self, input_ids, attention_mask=None):
        states = self.embedding(input_ids).cumsum(dim=1)
        return {"logits": self.head(torch.tanh(states))}


@pytest.fixture
def lens():
    return layerlens.Lens(Model(), tokenizer=Tokenizer())


def logits(lens, text):
    with torch.no_grad():
        return lens.model(**Tokenizer()([text], return_tensors="pt"))["logits"][0]


def test_the_next_token_is_named_by_its_text(lens):
    found = lens.saliency("the cat", target=" sat", method="gradient")
    assert found.score.item() == logits(lens, "the cat")[-1].log_softmax(-1)[3].item()
    assert found.target == "log p of ' sat' next"


def test_without_a_target_it_is_the_most_likely_one(lens):
    found = lens.saliency("the cat", method="gradient")
    last = logits(lens, "the cat")[-1]
    assert found.score.item() == last.log_softmax(-1).max().item()
    assert found.target == f"log p of {WORDS[int(last.argmax())]!r} next (predicted)"
    by_id = lens.saliency("the cat", target=int(last.argmax()), method="gradient")
    assert by_id.score.item() == found.score.item() and f"{by_id.target} (predicted)" == found.target


def test_differences_of_tokens_are_those_of_logits(lens):
    last = logits(lens, "the cat")[-1]
    others = (last.sum() - last[3]) / (len(WORDS) - 1)
    for target, expected, label in (
        (layerlens.contrast(" sat", " ran"), last[3] - last[4], "' sat' next - ' ran' next"),
        (layerlens.contrast(" sat"), last[3] - others, "' sat' next - mean of the others"),
        (layerlens.contrast(" sat", (-1, 4)), last[3] - last[4], "' sat' next - (-1, 4)"),
        (layerlens.contrast([" sat"], [" ran"]), last[3] - last[4], "' sat' next - ' ran' next"),
        (layerlens.contrast([" sat", (-1, 3)][:1], [(-1, 4)]), last[3] - last[4], "' sat' next - (-1, 4)"),
        (layerlens.probability(" sat"), last.softmax(-1)[3], "probability of ' sat' next"),
    ):
        found = lens.saliency("the cat", target=target, method="gradient")
        torch.testing.assert_close(found.score[0], expected)
        assert found.target == label, label
    best = lens.saliency("the cat", target=layerlens.contrast(None, " cat"), method="gradient")
    torch.testing.assert_close(best.score[0], last.max() - last[1])
    mixed = lens.saliency(
        ["the cat", "the dog"], target=layerlens.contrast([" sat", (-1, 3)], " ran"), method="gradient"
    )
    other = logits(lens, "the dog")[-1]
    torch.testing.assert_close(mixed.score, torch.stack([last[3] - last[4], other[3] - other[4]]))


def test_an_output_of_probabilities_is_taken_as_it_is(lens):
    class Normalized(Model):
        def forward(self, input_ids, attention_mask=None):
            return {"logits": super().forward(input_ids)["logits"].softmax(dim=-1)}

    own = layerlens.Lens(Normalized(), tokenizer=Tokenizer())
    for target in (" sat", None, layerlens.continuation(1)):
        found, same = (one.saliency("the cat", target=target, method="gradient") for one in (own, lens))
        torch.testing.assert_close(found.score, same.score)
        torch.testing.assert_close(found.tensor, same.tensor)


def test_relevance_of_a_log_probability_adds_up(lens):
    for rules in ("attn", "epsilon", "auto"):
        ledger = lens.relevance("the cat sat", rules=rules).ledger
        assert float(ledger.relative.max()) < 1e-9, rules


def test_texts_of_several_lengths_end_where_their_padding_begins(lens):
    found = lens.saliency(["the cat sat", "the dog"], target=" ran", method="gradient")
    expected = [logits(lens, text)[-1].log_softmax(-1)[4].item() for text in ("the cat sat", "the dog")]
    assert found.score.tolist() == pytest.approx(expected, rel=1e-6)
    assert found.tensor[1, 2] == 0


def test_a_contrast_of_two_words(lens):
    found = lens.relevance("the cat", target=layerlens.contrast(" sat", " ran"))
    last = logits(lens, "the cat")[-1]
    torch.testing.assert_close(found.score[0], last[3] - last[4])
    place = lens.saliency("the cat", target=(0, " sat"), method="gradient").score
    torch.testing.assert_close(place[0], logits(lens, "the cat")[0, 3])


def test_a_continuation_is_the_sum_of_log_probabilities(lens):
    found = lens.saliency("the cat sat ran", target=layerlens.continuation(" sat ran"), method="gradient")
    steps = logits(lens, "the cat sat ran").log_softmax(-1)
    torch.testing.assert_close(found.score[0], steps[1, 3] + steps[2, 4])
    by_count = lens.saliency("the cat sat ran", target=layerlens.continuation(2), method="gradient")
    torch.testing.assert_close(by_count.tensor, found.tensor)
    assert found.target == "log p(' sat ran')"


def test_what_is_no_token_is_told(lens):
    with pytest.raises(TargetError, match="is 2 tokens"):
        lens.saliency("the cat", target=" sat ran")
    with pytest.raises(TargetError, match="does not end with"):
        lens.saliency("the cat", target=layerlens.continuation(" dog"))
    with pytest.raises(TargetError, match="needs a longer input"):
        lens.saliency("the cat", target=layerlens.continuation(2))
    with pytest.raises(TargetError, match="tokenizer"):
        layerlens.saliency(Model(), {"input_ids": torch.tensor([[5, 1]])}, target=layerlens.continuation(" cat"))
    with pytest.raises(TargetError, match="token ids"):
        layerlens.continuation(1)(torch.zeros(1, 2, 6))

    class Classifier(Model):
        def forward(self, input_ids, attention_mask=None):
            return super().forward(input_ids)["logits"].mean(dim=1)[:, :2]

    lens = layerlens.Lens(Classifier(), tokenizer=Tokenizer())
    with pytest.raises(TargetError, match="class_names"):
        lens.saliency("the cat", target=" sat", method="gradient")
    assert lens.saliency("the cat", method="gradient").target in ("class 0 (predicted)", "class 1 (predicted)")


def test_a_vocabulary_is_a_mapping_of_names():
    words = Vocabulary(Tokenizer())
    assert len(words) == 6 and words[1] == "' cat'" and words.get(2) == "' dog'" and list(words)[-1] == 5


# -- areas -------------------------------------------------------------------------------------------------------------


def test_the_area_of_a_class():
    torch.manual_seed(1)
    model, x = nn.Conv2d(3, 4, 3, padding=1).double(), torch.randn(2, 3, 6, 6).double()
    out = model(x).detach()
    own = layerlens.saliency(model, x, target=layerlens.area(2), method="gradient")
    mask = out.argmax(1) == 2
    expected = torch.stack([row[2][chosen].mean() for row, chosen in zip(out, mask, strict=True)])
    torch.testing.assert_close(own.score, expected)
    box = layerlens.saliency(model, x, target=layerlens.area(1, (1, 2, 4, 6), over="sum"), method="gradient")
    torch.testing.assert_close(box.score, out[:, 1, 1:4, 2:6].sum(dim=(1, 2)))
    given = layerlens.relevance(model, x, target=layerlens.area(2, mask))
    torch.testing.assert_close(given.score, expected)


def test_areas_that_are_not_there():
    out = torch.zeros(1, 2, 4, 4)
    for target, match in (
        (layerlens.area(5), "class 5"),
        (layerlens.area(0, (0, 0, 9, 2)), "holds no place"),
        (layerlens.area(1), "highest nowhere"),
        (layerlens.area(0, torch.ones(3, 3, dtype=torch.bool)), "does not fit"),
    ):
        with pytest.raises(TargetError, match=match):
            target(out)
    with pytest.raises(TargetError, match="empty"):
        layerlens.area(0, torch.zeros(4, 4, dtype=torch.bool))
    with pytest.raises(TargetError, match="boolean mask"):
        layerlens.area(0, torch.ones(4, 4))
