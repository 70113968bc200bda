"""Relevance on trained models of several kinds; each number here says something about the model."""

import copy

import pytest
import torch

from layerlens import Lens, relevance
from tests import real_models
from tests.cases import zero_additive

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def paris():
    """The language model with the index of its answer, ` Paris`."""
    model, tokenizer = real_models.smollm2()
    logits = model(**tokenizer(PROMPT, return_tensors="pt")).logits[0, -1].detach()
    index = int(logits.argmax())
    assert tokenizer.decode(index) == " Paris"
    assert float(logits[index]) == pytest.approx(17.371, abs=1e-3)
    return Lens(model, tokenizer=tokenizer), index


def test_a_language_model_conserves_its_logit(paris):
    lens, index = paris
    result = lens.relevance(PROMPT, target=(-1, index))
    assert result.settings["rules"]["name"] == "cp"
    assert float(result.ledger.relative.max()) < 1e-5
    assert float(result.ledger.gap.max()) < 1e-4  # no biases: all of the logit is in the tokens
    assert float(result.tensor.sum()) == pytest.approx(17.371, abs=2e-3)


def test_the_country_counts_more_than_the_words_around_it(paris):
    lens, index = paris
    result = lens.relevance(PROMPT, target=(-1, index), rules="attn")
    found = dict(zip(result.tokens[0], result.tensor[0].tolist(), strict=True))
    words = {token.replace("Ġ", ""): value for token, value in found.items()}
    assert words["France"] > max(words["The"], words["capital"], words["of"])


def test_fused_attention_is_eager_attention(paris):
    lens, index = paris
    eager, tokenizer = real_models.smollm2("eager")
    for rules in ("cp", "attn"):
        fused = lens.relevance(PROMPT, target=(-1, index), rules=rules)
        plain = Lens(eager, tokenizer=tokenizer).relevance(PROMPT, target=(-1, index), rules=rules)
        assert any(op.startswith("ScaledDotProduct") for op in fused.rules_used)
        assert not any(op.startswith("ScaledDotProduct") for op in plain.rules_used)
        torch.testing.assert_close(fused.tensor, plain.tensor, rtol=1e-4, atol=1e-4 * 17)


def test_a_sentence_encoder_finds_the_words_that_two_sentences_share():
    model, tokenizer = real_models.minilm()

    def embed(output, mask):
        means = (output.last_hidden_state * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return means / means.norm(dim=1, keepdim=True)

    other = tokenizer(["Dogs love to chase balls."], return_tensors="pt")
    goal = embed(model(**other), other["attention_mask"]).detach()
    text = "The weather was dull, and a puppy played with a ball."
    mask = tokenizer([text], return_tensors="pt")["attention_mask"]
    lens = Lens(model, tokenizer=tokenizer)
    result = lens.relevance([text], target=lambda output: (embed(output, mask) * goal).sum(1))
    assert float(result.ledger.relative.max()) < 1e-5
    found = dict(zip(result.tokens[0], result.tensor[0].tolist(), strict=True))
    assert min(found["puppy"], found["ball"]) > max(found["weather"], found["dull"])


def test_a_generator_is_traced_from_a_region_to_the_latent_vector():
    model = real_models.face_generator()
    torch.manual_seed(0)
    z = torch.randn(2, 100, 1, 1)

    def mouth(images):
        return images[:, :, 40:50, 22:42].mean(dim=(1, 2, 3))

    for rules in ("auto", "epsilon"):
        result = relevance(model, z, target=mouth, rules=rules)
        assert float(result.ledger.relative.max()) < 1e-5
    result = relevance(model, z, target=mouth, rules="epsilon", layers="9")
    at_64 = result.layers["9"][0].abs().sum(dim=1)[0]  # (32, 32): what of the picture the region is made of
    inside = at_64[18:27, 9:23].sum() / at_64.sum()
    assert float(inside) > 0.999


def test_a_recurrent_encoder_is_traced_to_its_frames():
    model = real_models.speaker_encoder()
    torch.manual_seed(0)
    frames = torch.rand(2, 60, 40) * 0.1
    frames[:, 20:40, 5:15] += 1.0  # a voice in the middle third
    unit = int(model(frames)[0].argmax())
    result = relevance(model, frames, target=unit)
    assert result.settings["rules"]["name"] == "gate"
    assert float(result.ledger.relative.max()) < 1e-5 and result.ledger.by_sample
    twin = copy.deepcopy(model).double()
    exact = relevance(twin, frames.double(), target=unit)
    assert float(exact.ledger.relative.max()) < 1e-9
    torch.testing.assert_close(
        result.tensor.double(), exact.tensor, rtol=0, atol=1e-4 * float(exact.tensor.abs().max())
    )
    without = zero_additive(twin)  # other units are on then
    bare = relevance(without, frames.double(), target=int(without(frames.double()).amin(dim=0).argmax()))
    assert bool((bare.score > 0).all())
    assert float(bare.ledger.gap.max()) < 1e-9  # 180 steps of three layers, and nothing is lost
