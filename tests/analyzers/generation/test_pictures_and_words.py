"""A picture, or a sound, and words in one model: random weights, against each step alone and the sums of the ledger."""

import pytest
import torch

from layerlens import Lens, errors, relevance

IDS = torch.tensor([[5, 39, 39, 39, 39, 7, 9, 11]])


@pytest.fixture(scope="module")
def llava():
    import transformers as of

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    sees = of.CLIPVisionConfig(**sizes, image_size=16, patch_size=8)
    reads = of.LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=40, eos_token_id=1, pad_token_id=0)
    both = of.LlavaConfig(vision_config=sees, text_config=reads, image_token_index=39, vision_feature_layer=-1)
    picture = torch.randn(1, 3, 16, 16)
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "pixel_values": picture}
    return of.LlavaForConditionalGeneration(both).eval(), given


def test_each_word_of_the_answer_has_a_map_on_the_picture(llava):
    model, given = llava
    found = Lens(model).generate(given, max_new_tokens=3, record=["relevance", "attention", "logit_lens"])
    truth = model.generate(**given, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert found.ids.tolist() == truth[0, 8:].tolist() and float(found.checks["log p of the run"]) < 1e-5
    ids = truth[:, :9]
    alone = relevance(
        model,
        {**given, "input_ids": ids, "attention_mask": torch.ones_like(ids)},
        target=lambda out: out.logits[:, -1].log_softmax(1)[:, int(found.ids[1])],
    )
    second = found.relevance[1]
    torch.testing.assert_close(second.values["pixel_values"], alone.values["pixel_values"], rtol=1e-3, atol=1e-6)
    assert second.values["pixel_values"].shape == (1, 3, 16, 16) and bool(second.values["pixel_values"].any())
    parts = second.ledger.by_input()
    assert list(parts) == ["pixel_values", "input_ids", "additive", "absorbed", "residual"]
    torch.testing.assert_close(parts["pixel_values"].double(), second.values["pixel_values"].double().sum((1, 2, 3)))
    torch.testing.assert_close(sum(parts.values()), second.score.double())
    assert found.sources().values.shape == (3, 10)
    seen = found.sources(layer="model.language_model.layers.1.self_attn").values
    assert seen.shape == (3, 10) and torch.allclose(seen[2, :10].sum(), torch.tensor(1.0).double(), atol=1e-5)
    vision = next(layer for layer in found.attention.layers if "vision" in layer)
    with pytest.raises(errors.OptionError, match="not the tokens of the text"):
        found.sources(layer=vision)


def test_words_and_patches_are_left_out_together(llava):
    model, given = llava
    lens = Lens(model)
    patches = torch.arange(4).reshape(1, 1, 2, 2).repeat_interleave(8, 2).repeat_interleave(8, 3)
    found = lens.saliency(given, target=(-1, 5), method="leave_one_out", features={"pixel_values": patches})
    assert found.cost == "16 forward passes: 4 for pixel_values, 12 for input_ids"  # 4 words, the 3 others for each
    with torch.no_grad():
        whole = model(**given).logits[0, -1, 5]
        picture = given["pixel_values"]
        changed = torch.where(patches == 2, picture.mean(dim=(2, 3), keepdim=True), picture)
        patch = whole - model(**{**given, "pixel_values": changed}).logits[0, -1, 5]
        ids = [torch.where(torch.arange(8) == 6, other, IDS) for other in (5, 7, 11)]
        word = whole - sum(model(**{**given, "input_ids": one}).logits[0, -1, 5] for one in ids) / 3
    torch.testing.assert_close(found.values["pixel_values"][0, 1, 9, 3], patch, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.values["input_ids"][0, 6], word, rtol=1e-4, atol=1e-6)
    words = lens.saliency(given, target=(-1, 5), method="leave_one_out", hold="pixel_values")
    assert torch.equal(words.tensor, found.values["input_ids"])
    for method in ("rise", "centered_relevance", "auto"):
        both = lens.saliency(given, target=(-1, 5), method=method)
        assert set(both.values) == {"pixel_values", "input_ids"} and both.values["pixel_values"].any()
        assert not both.values["input_ids"][0, 1:5].any()  # the picture takes the places of these


def test_a_transcript_has_a_map_on_the_sound():
    import transformers as of

    torch.manual_seed(0)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_mel_bins": 8, "vocab_size": 40, "d_model": 16}
    ends = {"decoder_start_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
    config = of.WhisperConfig(
        **sizes, **ends, max_source_positions=20, max_target_positions=16, suppress_tokens=None,
        begin_suppress_tokens=None,
    )  # fmt: skip
    model = of.WhisperForConditionalGeneration(config).eval()
    sound = torch.randn(1, 8, 40)
    found = Lens(model).generate({"input_features": sound}, max_new_tokens=3, record=["relevance", "attention"])
    assert float(found.checks["log p of the run"]) < 1e-5 and len(found.relevance) == len(found)
    one = found.relevance[-1]
    assert one.values["input_features"].shape == (1, 8, 40) and float(one.ledger.relative.max()) < 1e-5
    assert found.sources(layer="model.decoder.layers.0.encoder_attn").values.shape == (len(found), 20)
