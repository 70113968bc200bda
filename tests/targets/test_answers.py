"""Encoder-decoders: a target reads the decoder at the last real place of the answer, not of the source."""

import functools

import pytest
import torch
from torch import nn

from layerlens import Lens, continuation, contrast
from layerlens.errors import TargetError
from tests.cases import normal

pytestmark = pytest.mark.filterwarnings("ignore:.*cancel over the features")

VOCABULARY = 40
SIZES = {"vocab_size": VOCABULARY, "d_model": 16, "decoder_start_token_id": 2, "pad_token_id": 1, "eos_token_id": 3}
BART = {
    **SIZES, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 30, "init_std": 0.5,
}  # fmt: skip


class Tokenizer:
    """A token is `w` and its number; padding is 1."""

    pad_token_id = 1

    def __len__(self):
        return VOCABULARY

    def __call__(self, text, add_special_tokens=True, return_tensors=None, padding=False):
        return {"input_ids": [int(part) for part in text.split("w")[1:]]}

    def decode(self, ids):
        return "".join(f"w{index}" for index in ids)

    def convert_ids_to_tokens(self, ids):
        return [f"w{index}" for index in ids]


class Translator(nn.Module):
    """A user's own encoder-decoder around `nn.Transformer`."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)
        self.net = nn.Transformer(16, 2, 1, 1, 24, dropout=0.0, batch_first=True)

    def forward(self, src, tgt, src_key_padding_mask=None, tgt_key_padding_mask=None):
        states = self.net(
            self.words(src), self.words(tgt), tgt_mask=torch.ones(tgt.shape[1], tgt.shape[1], dtype=torch.bool).triu(1),
            src_key_padding_mask=src_key_padding_mask, memory_key_padding_mask=src_key_padding_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
        )  # fmt: skip
        return self.head(states)


@functools.cache
def model_of(kind):
    import transformers as hf

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if kind == "t5":
            config = hf.T5Config(**{**SIZES, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2})
            model = hf.T5ForConditionalGeneration(config)
        elif kind == "bart":
            model = hf.BartForConditionalGeneration(hf.BartConfig(**BART))
        elif kind == "marian":
            model = hf.MarianMTModel(hf.MarianConfig(**BART))
        elif kind == "whisper":
            sizes = {**BART, "num_mel_bins": 6, "max_source_positions": 8, "max_target_positions": 30}
            model = hf.WhisperForConditionalGeneration(hf.WhisperConfig(**sizes))
        elif kind == "vision":
            see = hf.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
                               image_size=8, patch_size=4)  # fmt: skip
            say = hf.GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, add_cross_attention=True)
            config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(see, say)
            model = hf.VisionEncoderDecoderModel(config=config)
        else:
            model = Translator()
    return model.double().eval()


SOURCE = torch.tensor([[5, 9, 22, 31, 17], [8, 28, 13, 12, 30]])
ANSWER = torch.tensor([[2, 6, 33, 7, 11], [2, 12, 9, 34, 10]])


def inputs(kind, answer=ANSWER, rows=slice(None)):
    if kind == "whisper":
        return {"input_features": normal(2, 6, 16).double()[rows], "decoder_input_ids": answer}
    if kind == "vision":
        return {"pixel_values": normal(2, 3, 8, 8).double()[rows], "decoder_input_ids": answer}
    names = ("src", "tgt") if kind == "transformer" else ("input_ids", "decoder_input_ids")
    return dict(zip(names, (SOURCE[rows], answer), strict=True))


def logits(kind, x):
    with torch.no_grad():
        out = model_of(kind)(**x)
    return out if isinstance(out, torch.Tensor) else out.logits


def log_p(kind, x):
    return logits(kind, x).log_softmax(-1)


def lens_of(kind):
    return Lens(model_of(kind), tokenizer=Tokenizer())


KINDS = ["t5", "bart", "marian", "whisper", "vision", "transformer"]


@pytest.mark.parametrize("places", [1, 2, 3, 4, 5, 6, 8])  # shorter than, equal to and longer than the source
@pytest.mark.parametrize("kind", KINDS)
def test_targets_read_the_last_place_of_the_answer(kind, places):
    answer = torch.cat([ANSWER, ANSWER.flip(1)], dim=1)[:, :places]
    x, lens = inputs(kind, answer), lens_of(kind)
    last = log_p(kind, x)[:, -1]
    torch.testing.assert_close(lens.saliency(x, target="w6", method="gradient").score, last[:, 6])
    torch.testing.assert_close(lens.saliency(x, method="gradient").score, last.max(dim=1).values)
    found = lens.saliency(x, target=contrast("w6", "w7"), method="gradient")
    torch.testing.assert_close(found.score, last[:, 6] - last[:, 7])
    assert lens.relevance(x, target="w6", rules="attn").target == "log p of 'w6' next"


@pytest.mark.parametrize("kind", ["t5", "bart", "marian", "transformer"])
@pytest.mark.parametrize("side", ["source", "answer", "both"])
def test_the_padding_of_one_side_does_not_move_the_place_of_the_other(kind, side):
    lens, x = lens_of(kind), inputs(kind)
    own = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    names = ("src", "tgt") if kind == "transformer" else ("input_ids", "decoder_input_ids")
    for name, which in zip(names, ("source", "answer"), strict=True):
        if side in (which, "both"):
            x[name] = torch.where(own > 0, x[name], 1)
            if kind == "transformer":
                x[f"{name}_key_padding_mask"] = own == 0
            else:
                x[name.replace("input_ids", "attention_mask")] = own
    found = lens.saliency(x, target="w6", method="gradient")
    lengths = {"source": (5, 5), "answer": (5, 3), "both": (5, 3)}[side]
    whole = log_p(kind, x)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(found.score[row], whole[row, length - 1, 6])
        single = {name: value[row : row + 1] for name, value in x.items()}
        kept = {names[0]: 5 if side == "answer" or row == 0 else 3, names[1]: length}
        for name, value in list(single.items()):
            stem = next(one for one in (names[1], names[0]) if name.startswith(one.replace("input_ids", "")))
            single[name] = value[:, : kept[stem]]
        torch.testing.assert_close(found.score[row], log_p(kind, single)[0, -1, 6])


def test_positional_arguments_have_the_names_of_the_parameters():
    lens, mask = lens_of("transformer"), torch.tensor([[0] * 5, [0, 0, 0, 1, 1]]) > 0
    whole = log_p("transformer", {"src": SOURCE, "tgt": ANSWER, "tgt_key_padding_mask": mask})
    none = torch.zeros(2, 5, dtype=torch.bool)
    score = lens.saliency((SOURCE, ANSWER, none, mask), target="w6", method="gradient").score
    torch.testing.assert_close(score, torch.stack([whole[0, 4, 6], whole[1, 2, 6]]))


@pytest.mark.parametrize("places", [3, 5])
def test_labels_are_an_answer(places):
    labels = ANSWER[:, :places].clone()
    labels[1, -1] = -100
    x = {"input_ids": SOURCE, "labels": labels}
    whole = log_p("t5", x)
    score = lens_of("t5").saliency(x, target="w6", method="gradient").score
    torch.testing.assert_close(score, torch.stack([whole[0, -1, 6], whole[1, -2, 6]]))


def test_labels_of_a_language_model_change_nothing():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2)).double().eval()
    mask = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    x = {"input_ids": torch.where(mask > 0, SOURCE, 1), "attention_mask": mask}
    lens = Lens(model, tokenizer=Tokenizer())
    plain = lens.saliency(x, target="w6", method="gradient").score
    with_labels = lens.saliency({**x, "labels": SOURCE}, target="w6", method="gradient").score
    assert torch.equal(plain, with_labels)
    with torch.no_grad():
        torch.testing.assert_close(plain[1], model(SOURCE[1:, :3]).logits[0, -1].log_softmax(-1)[6])


def test_a_source_without_an_answer():
    x = {"input_ids": SOURCE}  # BART then reads the source, shifted by one
    score = lens_of("bart").saliency(x, target="w6", method="gradient").score
    torch.testing.assert_close(score, log_p("bart", x)[:, -1, 6])


@pytest.mark.parametrize("places", [4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_continuation_is_of_the_answer(kind, places):
    answer = ANSWER[:1, :places]
    x = inputs(kind, answer, slice(0, 1))
    ids = answer[0, -2:].tolist()
    steps = logits(kind, x)[0, -3:-1].log_softmax(-1)
    expected = steps[0, ids[0]] + steps[1, ids[1]]
    for said in (2, f"w{ids[0]}w{ids[1]}"):
        found = lens_of(kind).saliency(x, target=continuation(said), method="gradient")
        torch.testing.assert_close(found.score[0], expected)


def test_a_padding_that_no_mask_names_is_refused():
    x = {"input_ids": SOURCE, "decoder_input_ids": torch.tensor([[2, 6, 33], [2, 6, 1]])}
    with pytest.raises(TargetError, match=r"some samples of decoder_input_ids end with the padding token 1"):
        lens_of("t5").saliency(x, target="w6", method="gradient")
    place = lens_of("t5").saliency(x, target=(-1, "w6"), method="gradient").score
    torch.testing.assert_close(place, logits("t5", x)[:, -1, 6])


class Fixed(Translator):
    """Takes texts of five tokens alone, so that none of them can be shortened; and the mask of either."""

    def forward(self, first, second, mask=None):
        assert first.shape[1] == second.shape[1] == 5
        return super().forward(first, second)


def test_what_cannot_be_known_is_refused_with_a_way_to_say_it():
    lens, x = Lens(Fixed(), tokenizer=Tokenizer()), {"first": SOURCE, "second": ANSWER}
    with pytest.raises(TargetError, match=r"5 places, and so have first and second.*target=\(place, token\)"):
        lens.saliency(x, target="w6", method="gradient")
    score = lens.saliency(x, target=(-1, "w6"), method="gradient").score
    with torch.no_grad():
        torch.testing.assert_close(score, lens.model(**x)[:, -1, 6])

    class Two(Fixed):
        def forward(self, first, second, mask=None):
            return Translator.forward(self, first, second)

    lens = Lens(Two(), tokenizer=Tokenizer())
    mask = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    with pytest.raises(TargetError, match="the mask mask may be of second or of another input"):
        lens.saliency({**x, "mask": mask}, target="w6", method="gradient")


class Prefixed(nn.Module):
    """Reads two places of its own before the text."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)
        self.prefix = nn.Parameter(torch.randn(2, 16))

    def forward(self, input_ids, attention_mask=None):
        states = torch.cat([self.prefix.expand(len(input_ids), -1, -1), self.words(input_ids)], dim=1)
        return self.head(states.cumsum(dim=1))


def test_an_output_of_more_places_than_any_input():
    lens, mask = Lens(Prefixed(), tokenizer=Tokenizer()), torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    with torch.no_grad():
        last = lens.model(SOURCE)[:, -1].log_softmax(-1)[:, 6]
    assert torch.equal(lens.saliency({"input_ids": SOURCE}, target="w6", method="gradient").score, last)
    left = {"input_ids": SOURCE, "attention_mask": mask.flip(1)}
    assert torch.equal(lens.saliency(left, target="w6", method="gradient").score, last)
    with pytest.raises(TargetError, match="the output has 7 places, as no input has, and input_ids ends with padding"):
        lens.saliency({"input_ids": SOURCE, "attention_mask": mask}, target="w6", method="gradient")


class Timed(nn.Module):
    """Reads a time with each token."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)

    def forward(self, ids, times, kinds=None):
        assert ids.shape == times.shape and (kinds is None or kinds.shape == ids.shape)
        return self.head((self.words(ids) * times.unsqueeze(2)).cumsum(dim=1))


def test_inputs_along_the_same_places_are_one_text():
    lens, times = Lens(Timed(), tokenizer=Tokenizer()), normal(2, 5)
    mask = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    with torch.no_grad():
        whole = lens.model(SOURCE, times).log_softmax(-1)
    for more in ({}, {"kinds": SOURCE}):
        x = {"ids": SOURCE, "times": times, **more}
        score = lens.saliency(x, target="w6", method="gradient").score
        torch.testing.assert_close(score, whole[:, -1, 6])
        masked = Lens(lens.model, tokenizer=Tokenizer(), forward=lambda model, ids_mask, **own: model(**own))
        score = masked.saliency({**x, "ids_mask": mask}, target="w6", method="gradient").score
        torch.testing.assert_close(score, torch.stack([whole[0, 4, 6], whole[1, 2, 6]]))
