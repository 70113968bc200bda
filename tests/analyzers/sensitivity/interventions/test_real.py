"""Where trained models carry what they know."""

import pytest
import torch

from layerlens import Lens, contrast
from layerlens.results import Matrix, Ranking
from tests.real_models import minilm, smollm2, speaker_encoder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

CLEAN, CORRUPTED = "The capital of France is", "The capital of Italy is"
FACT = contrast(" Paris", " Rome")


def language_model():
    model, tokenizer = smollm2()
    return Lens(model, tokenizer=tokenizer)


@pytest.mark.parametrize("way", ["denoise", "noise"])
def test_the_fact_is_carried_by_the_subject_early_and_by_the_last_token_late(way):
    found = language_model().patch(CORRUPTED, CLEAN, "model.layers.*", by="layer_position", target=FACT, direction=way)
    assert isinstance(found, Matrix) and found.values.shape == (30, 5)
    assert found.columns == ("0 The", "1 capital", "2 of", "3 Italy / France", "4 is")
    corrupted, clean = found.checks["scores"].tolist()
    assert clean > 3 and corrupted < -3  # it knows both capitals
    assert float(found.values[:, :3].abs().max()) < 1e-4  # before the texts differ nothing can be carried
    subject, last = found.values[:, 3], found.values[:, 4]
    assert float(subject[:16].min()) > 0.9 and float(last[:16].max()) < 0.2
    assert float(last[-5:].min()) > 0.9 and float(subject[-5:].abs().max()) < 0.1
    crossing = int((last > subject).nonzero()[0])
    assert bool((last[crossing:] > 0.8).all()) and bool((subject[:crossing] > 0.8).all())  # it moves once


def test_the_heads_that_move_it_are_needed_together():
    lens = language_model()
    patched = lens.patch(CORRUPTED, CLEAN, by="head", target=FACT)
    assert isinstance(patched, Ranking) and len(patched) == 30 * 9
    (best, share), (_, second) = patched.ranked()[:2]
    assert share > 0.5 and share > 2 * abs(second)
    screened = lens.ablate(CLEAN, by="head", target=FACT, count=40)
    assert float(screened.checks["rank correlation"]) > 0.5
    assert min(screened.ranked(), key=lambda pair: pair[1])[0] == best
    top = [item for item, _ in sorted(screened.ranked(), key=lambda pair: pair[1])[:5]]
    generator = torch.Generator().manual_seed(0)
    groups = {"top": top} | {
        f"random {k}": [patched.items[i] for i in torch.randperm(270, generator=generator)[:5].tolist()]
        for k in range(10)
    }
    joint = lens.ablate(CLEAN, by="head", target=FACT, together=groups)
    drop = dict(zip(joint.items, (-joint.values).tolist(), strict=True))
    assert drop.pop("top") > 2 * max(drop.values())


def test_first_order_effects_of_a_sentence_encoder_agree_with_exact_ones():
    model, tokenizer = minilm()
    lens = Lens(model, tokenizer=tokenizer)
    texts = ["A man is playing the guitar.", "Somebody makes music on strings."]
    mask = tokenizer(texts, padding=True, return_tensors="pt")["attention_mask"].unsqueeze(2)

    def alike(output):
        """The cosine of both sentences, for each."""
        hidden = output.last_hidden_state.unflatten(0, (-1, 2))
        means = (hidden * mask).sum(2) / mask.sum(1)
        return torch.cosine_similarity(means[:, 0], means[:, 1], dim=-1).repeat_interleave(2)

    found = lens.ablate(texts, by="head", target=alike, screen="first_order")
    assert len(found) == 6 * 12 and found.settings["at_once"] > 1
    assert float(found.checks["rank correlation"]) > 0.7


def test_channels_of_a_recurrent_speaker_encoder():
    mels = torch.rand(2, 20, 40, generator=torch.Generator().manual_seed(0))
    lens = Lens(speaker_encoder())
    found = lens.ablate(mels, "relu", by="channel", target=lambda output: output[:, :64].sum(1), count=30)
    assert len(found) == 30 and float(found.checks["rank correlation"]) > 0.8
