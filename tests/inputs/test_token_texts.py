"""Words and characters are made from decoded text: tokenizers of every kind, built here or of trained models."""

import functools
import json

import pytest
import torch

from layerlens import Lens, plotting
from layerlens.inputs.token_texts import character_groups, decoded_texts, encoded_texts, labels, texts_by_offsets
from layerlens.results.maps.token_spans import word_groups
from tests.cases import CASES
from tests.real_models import minilm, smollm2

TEXTS = [
    "I love 北京 a lot", "family 👩‍👩‍👧 photo", "नमस्ते दुनिया", "東京 です", "สวัสดี ครับ", "Привет мир", "안녕하세요 세계",
    "thumbs 👍🏽 up 🇫🇷 now", "Zürich Ñandú naïve", "plain words only", "שלום עולם", "اهلا بالعالم", "a  b\tc",
]  # fmt: skip
CORPUS = ["the cat sat on a mat and then it ran to the old house", "words of plain text in the town", "love is a lot"]


@functools.cache
def tokenizer_of(kind):
    import tokenizers as tk
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", "<pad>"]
    if kind == "byte-level BPE":
        inner = tk.Tokenizer(tk.models.BPE())
        inner.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = tk.decoders.ByteLevel()
        trainer = tk.trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=tk.pre_tokenizers.ByteLevel.alphabet(), special_tokens=special
        )
    elif kind == "SentencePiece BPE with bytes":
        inner = tk.Tokenizer(tk.models.BPE(byte_fallback=True, unk_token="<unk>"))
        inner.pre_tokenizer = tk.pre_tokenizers.Metaspace()
        steps = tk.decoders
        inner.decoder = steps.Sequence(
            [steps.Replace("▁", " "), steps.ByteFallback(), steps.Fuse(), steps.Strip(" ", 1, 0)]
        )
        trainer = tk.trainers.BpeTrainer(vocab_size=200, special_tokens=special)
    elif kind == "SentencePiece Unigram":
        inner = tk.Tokenizer(tk.models.Unigram())
        inner.pre_tokenizer, inner.decoder = tk.pre_tokenizers.Metaspace(), tk.decoders.Metaspace()
        alphabet = sorted({letter for text in TEXTS for letter in text if not letter.isspace()})
        trainer = tk.trainers.UnigramTrainer(
            vocab_size=300, special_tokens=special, unk_token="<unk>", initial_alphabet=alphabet
        )
    elif kind == "WordPiece":
        inner = tk.Tokenizer(tk.models.WordPiece(unk_token="<unk>", max_input_chars_per_word=50))
        inner.pre_tokenizer, inner.decoder = tk.pre_tokenizers.Whitespace(), tk.decoders.WordPiece()
        alphabet = sorted({letter for text in TEXTS for letter in text})
        trainer = tk.trainers.WordPieceTrainer(
            vocab_size=500, special_tokens=special, initial_alphabet=alphabet, limit_alphabet=1000
        )
    else:
        inner = tk.Tokenizer(tk.models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        inner.pre_tokenizer, inner.decoder = tk.pre_tokenizers.WhitespaceSplit(), tk.decoders.BPEDecoder("</w>")
        alphabet = sorted({letter for text in TEXTS for letter in text})
        trainer = tk.trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, end_of_word_suffix="</w>", initial_alphabet=alphabet
        )
    inner.train_from_iterator([*CORPUS, *TEXTS[:1]], trainer)
    if kind == "SentencePiece BPE with bytes":
        state = json.loads(inner.to_str())
        for byte in range(256):
            state["model"]["vocab"].setdefault(f"<0x{byte:02X}>", len(state["model"]["vocab"]))
        inner = tk.Tokenizer.from_str(json.dumps(state))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


TRAINED = pytest.param("SmolLM2", marks=pytest.mark.slow)
KINDS = [
    "byte-level BPE", "SentencePiece BPE with bytes", "SentencePiece Unigram", "WordPiece", "end of word", TRAINED,
]  # fmt: skip


def tokenizer(kind):
    return smollm2()[1] if kind == "SmolLM2" else tokenizer_of(kind)


def words_of(names, texts):
    return ["".join(texts[start:stop]).strip() for start, stop in word_groups(names, texts)]


def names_of(own, encoding):
    return own.convert_ids_to_tokens(encoding["input_ids"][0].tolist())


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_words_are_those_of_the_text(kind, text):
    own = tokenizer(kind)
    encoding = own([text], return_tensors="pt")
    (read,) = encoded_texts(own, encoding, [text])
    assert "".join(read) == text
    assert words_of(names_of(own, encoding), read) == text.split()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_is_as_good_where_only_ids_are_known(kind, text):
    own = tokenizer(kind)
    encoding = own([text], return_tensors="pt")
    names = names_of(own, encoding)
    if "<unk>" in names:
        pytest.skip("the text cannot be decoded")
    (read,) = decoded_texts(own, encoding["input_ids"])
    expected = own.decode(encoding["input_ids"][0], clean_up_tokenization_spaces=False)
    assert "".join(read) == expected
    if kind != "WordPiece":  # which cuts at marks, and decodes with spaces there
        assert words_of(names, read) == text.split() == expected.split()


@pytest.mark.parametrize("kind", ["byte-level BPE", "SentencePiece BPE with bytes", TRAINED])
@pytest.mark.parametrize("text", TEXTS)
def test_names_alone_say_it_for_bytes(kind, text):
    from layerlens.results.maps.token_spans import join

    own = tokenizer(kind)
    names = names_of(own, own([text], return_tensors="pt"))
    assert [join(names[start:stop]).strip() for start, stop in word_groups(names)] == text.split()


@functools.cache
def tokenizer_of_class(kind):
    import transformers

    return getattr(transformers, kind)()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["ByT5Tokenizer", "CanineTokenizer"])
def test_tokens_that_are_bytes_or_letters(kind, text):
    own = tokenizer_of_class(kind)
    ids = own([text], return_tensors="pt")["input_ids"]
    (read,) = decoded_texts(own, ids)
    names = own.convert_ids_to_tokens(ids[0].tolist())
    found = words_of(names, read)
    assert (found[:-1] if kind == "ByT5Tokenizer" else found[1:-1]) == text.split()  # without what begins and ends it
    assert all(len(read[start]) for start, _ in character_groups(read))


@pytest.mark.slow
def test_sentences_for_a_trained_encoder():
    own = minilm()[1]
    for text, expected in (
        ("Don't stop in Zürich!", ["[CLS]", "Don't", "stop", "in", "Zürich", "!", "[SEP]"]),
        ("family 👩‍👩‍👧 photo", ["[CLS]", "family", "👩‍👩‍👧", "photo", "[SEP]"]),
        ("I love 北京", ["[CLS]", "I", "love", "北京", "[SEP]"]),
        ("नमस्ते दुनिया", ["[CLS]", "नमस्ते", "दुनिया", "[SEP]"]),
        ("สวัสดี ครับ", ["[CLS]", "สวัสดี", "ครับ", "[SEP]"]),
    ):
        encoding = own([text], return_tensors="pt")
        (read,) = encoded_texts(own, encoding, [text])
        assert words_of(names_of(own, encoding), read) == expected


@pytest.mark.slow
def test_special_tokens_have_their_names_and_padding_does_too():
    own = smollm2()[1]
    ids = torch.tensor([own.encode("<|im_start|>user\nhi 北<|im_end|>")])
    (read,) = decoded_texts(own, ids)
    assert read[0] == "<|im_start|>" and read[-1] == "<|im_end|>" and "".join(read[1:-1]) == "user\nhi 北"
    assert words_of(own.convert_ids_to_tokens(ids[0].tolist()), read) == [
        "<|im_start|>", "user", "", "hi", "北", "<|im_end|>",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_character_is_never_cut():
    own = smollm2()[1]
    for text in TEXTS:
        ids = own.encode(text)
        (read,) = decoded_texts(own, torch.tensor([ids]))
        for start, stop in character_groups(read):
            assert "\ufffd" not in own.decode(ids[start:stop])
            assert own.decode(ids[start:stop]) == "".join(read[start:stop])
    assert labels([" a", "北", "", "", "e", "\u0301"])[1:] == [
        "北 1/3",
        "北 2/3",
        "北 3/3",
        "e\u0301 1/2",
        "e\u0301 2/2",
    ]
    half = torch.tensor([own.encode(" 北")[:2]])
    assert decoded_texts(own, half)[0][1:] == [""]  # an end inside of a character


def test_a_token_that_holds_the_end_of_one_character_and_another():
    assert texts_by_offsets("北京a", ["x", "y", "a"], [(0, 1), (0, 2), (2, 3)]) == ["北京", "", "a"]


@pytest.mark.slow
class TestResults:
    """Results of texts and of ids, from a model to its figures."""

    TEXT = "A 北京 dog"

    def result(self, x):
        lens = Lens(language_model(), tokenizer=smollm2()[1])
        return lens.saliency(x, target=(-1, 7), method="gradient", magnitude=True)

    def test_by_word_of_texts_and_of_ids(self):
        own = smollm2()[1]
        ids = own([self.TEXT], return_tensors="pt")
        for given in (self.TEXT, dict(ids), ids["input_ids"], {"input_ids": ids["input_ids"]}):
            found = self.result(given)
            assert found.tokens == [own.convert_ids_to_tokens(ids["input_ids"][0].tolist())]
            assert found.texts == [["A", " 北", "", "", "京", "", " dog"]]
            words = found.by_word()
            assert words.tokens == [["A", "北京", "dog"]]
            sums = torch.stack([found.tensor[0, :1].sum(), found.tensor[0, 1:6].sum(), found.tensor[0, 6]])
            torch.testing.assert_close(words.tensor[0], sums)
            assert torch.equal(found.by_span(["北京"]).tensor, found.by_span([(1, 6)]).tensor)
            assert torch.equal(found.by_span(["北"]).tensor, found.by_span([(1, 4)]).tensor)

    def test_figures_show_characters(self):
        found = self.result(self.TEXT)
        values = found.tensor[0]
        grouped = [values[0], values[1:4].sum(), values[4:6].sum(), values[6]]
        for kind in ("tokens", "heatmap"):
            drawn = found.plot(kind).data["values"].tolist()
            assert drawn == pytest.approx([float(one) for one in grouped], rel=1e-5)
        html = plotting.tokens_html(found)
        assert all(f">{one}</span>" in html for one in "A北京") and html.count("<span") == 5

    def test_results_keep_their_texts_on_disk(self, tmp_path):
        from layerlens.results import load

        found = self.result(self.TEXT)
        again = load(found.save(tmp_path / "a"))
        assert again.texts == found.texts and again.tokens == found.tokens
        assert again.by_word().tokens == [["A", "北京", "dog"]]


@functools.cache
def language_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        return LlamaForCausalLM(LlamaConfig(vocab_size=49152, **sizes)).eval()


def test_a_tokenizer_that_only_names_its_tokens():
    class Names:
        def __call__(self, texts, return_tensors, padding=False):
            return {"input_ids": torch.tensor([[5, 6, 7]])}

        def convert_ids_to_tokens(self, ids):
            return [{5: "Ġåį", 6: "Ĺ", 7: "Ġa"}[index] for index in ids]

    found = Lens(CASES["hf_bert"].build(), tokenizer=Names()).saliency("x", target=1, method="gradient", magnitude=True)
    assert found.texts is None and found.tokens == [["Ġåį", "Ĺ", "Ġa"]]
    assert found.by_word().tokens == [["南", "a"]]
