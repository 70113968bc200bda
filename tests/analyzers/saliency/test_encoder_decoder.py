"""The source and the answer of an encoder-decoder have their tokens in results, words, attention and figures."""

import pytest
import torch

from layerlens import Lens, plotting
from layerlens.errors import InputError, PlotError
from layerlens.results import load
from tests.targets.test_answers import ANSWER, SOURCE, Fixed, Tokenizer, inputs, lens_of, model_of

pytestmark = pytest.mark.filterwarnings("ignore:.*cancel over the features")
TEXTS = ["t5", "bart", "marian", "transformer"]
NAMES = {"transformer": ("src", "tgt")}


class Spaced(Tokenizer):
    """Names and texts with a space before every even token."""

    def decode(self, ids, clean_up_tokenization_spaces=True):
        return "".join(f"{'' if index % 2 else ' '}w{index}" for index in ids)


def read(ids):
    return [[f"w{index}" for index in row] for row in ids.tolist()]


@pytest.mark.parametrize("places", [3, 5, 7])
@pytest.mark.parametrize("kind", TEXTS)
def test_source_and_answer_have_their_tokens(kind, places):
    answer = torch.cat([ANSWER, ANSWER.flip(1)], dim=1)[:, :places]
    x = inputs(kind, answer)
    source, said = NAMES.get(kind, ("input_ids", "decoder_input_ids"))
    for found in (
        lens_of(kind).saliency(x, target="w6", method="gradient", magnitude=True),
        lens_of(kind).relevance(x, target="w6", rules="attn"),
    ):
        assert found.tokens == {source: read(SOURCE), said: read(answer)} == found.texts
        assert [one.shape for one in found.values.values()] == [(2, 5), (2, places)]
        table = found.to_pandas()
        assert set(table[table["input"] == said]["token text"]) == {token for row in read(answer) for token in row}


@pytest.mark.parametrize("kind", ["whisper", "vision"])
def test_an_answer_about_a_picture_or_a_sound_has_its_tokens(kind):
    found = lens_of(kind).saliency(inputs(kind), target="w6", method="gradient", magnitude=True)
    assert found.tokens == {"decoder_input_ids": read(ANSWER)} and len(found.values) == 2
    drawn = plotting.tokens(found, 0)
    assert drawn.data["tokens"] == read(ANSWER)[0]
    with pytest.raises(PlotError, match="name="):
        plotting.heatmap(found)


def test_words_of_both():
    lens = Lens(model_of("t5"), tokenizer=Spaced())
    found = lens.saliency(inputs("t5"), target="w6", method="gradient", magnitude=True)
    words = found.by_word()
    assert words.tokens["input_ids"][0] == ["w5w9", "w22w31w17", "", ""]
    expected = {"input_ids": [[(0, 2), (2, 5)], [(0, 1), (1, 3), (3, 4), (4, 5)]],
                "decoder_input_ids": [[(0, 1), (1, 5)], [(0, 1), (1, 3), (3, 4), (4, 5)]]}  # fmt: skip
    for name, rows in expected.items():
        for row, groups in enumerate(rows):
            sums = [found.values[name][row, start:stop].sum() for start, stop in groups]
            torch.testing.assert_close(words.values[name][row, : len(groups)], torch.stack(sums))
            names = ["".join(found.tokens[name][row][start:stop]) for start, stop in groups]
            assert words.tokens[name][row][: len(groups)] == names
    part = found.by_span([(0, 2), (2, 5)], name="decoder_input_ids")
    assert part.values["decoder_input_ids"].shape == (2, 2)
    assert torch.equal(part.values["input_ids"], found.values["input_ids"])
    assert part.tokens["input_ids"] == found.tokens["input_ids"]
    with pytest.raises(InputError, match="there is no input 'decoder': the inputs are input_ids, decoder_input_ids"):
        found.by_span([(0, 2)], name="decoder")


@pytest.mark.parametrize("draw", [plotting.tokens, plotting.heatmap])
def test_figures_show_both(draw):
    found = lens_of("t5").saliency(inputs("t5"), target="w6", method="gradient", magnitude=True)
    drawn = draw(found, 1)
    both = torch.cat([found.values["input_ids"][1], found.values["decoder_input_ids"][1]])
    assert torch.equal(torch.as_tensor(drawn.data["values"]).double(), both)
    texts = [text.get_text() for axes in drawn.fig.axes for text in axes.texts] + [
        label.get_text() for axes in drawn.fig.axes for label in axes.get_yticklabels()
    ]
    shown = [text for text in texts if text.startswith("w")]
    assert shown == read(SOURCE)[1] + read(ANSWER)[1]
    one = draw(found, 1, name="decoder_input_ids")
    assert torch.equal(torch.as_tensor(one.data["values"]).double(), found.values["decoder_input_ids"][1])
    words = draw(found.by_word(), 0)
    assert len(words.data["values"]) == sum(len([w for w in row[0] if w]) for row in found.by_word().tokens.values())


def test_html_shows_both():
    found = lens_of("t5").saliency(inputs("t5"), target="w6", method="gradient", magnitude=True)
    fragment = plotting.tokens_html(found, 0)
    order = ["<b>input_ids:</b>", ">w22</span>", "<b>decoder_input_ids:</b>", ">w33</span>"]
    assert sorted(order, key=fragment.index) == order
    assert found._repr_html_().count("<b>input_ids:</b>") == 2  # of two samples


def test_a_store_and_a_file_keep_both(tmp_path):
    lens = lens_of("t5")
    found = lens.saliency(inputs("t5"), target=(-1, 6), method="gradient", magnitude=True)
    again = load(found.save(tmp_path / "a"))
    assert again.tokens == found.tokens and again.by_word().tokens == found.by_word().tokens
    store = lens.over(inputs("t5"), store=tmp_path / "s", batch_size=1).saliency(
        target=(-1, 6), method="gradient", magnitude=True
    )
    one = store.attribution([0, 1])
    assert one.tokens == found.tokens and one.texts == found.texts
    assert store.attribution(1).by_word().tokens == {
        name: [[word for word in rows[1] if word]] for name, rows in found.by_word().tokens.items()
    }


@pytest.mark.parametrize("places", [1, 3, 5])
@pytest.mark.parametrize("kind", TEXTS)
def test_cross_attention_has_the_answer_down_and_the_source_across(kind, places):
    x = inputs(kind, ANSWER[:, :places])
    source, said = NAMES.get(kind, ("input_ids", "decoder_input_ids"))
    found = lens_of(kind).attention(x)
    for layer, weights in found.weights.items():
        cross = any(part in layer for part in ("EncDec", "encoder_attn", "multihead_attn"))
        along = (said, source) if cross else (said, said) if "decoder" in layer else (source, source)
        assert found.inputs[layer] == along and weights.shape[-2:] == tuple(x[name].shape[1] for name in along)
        assert found.tokens_along(layer, 1) == tuple(read(x[name])[1] for name in along)
        drawn = found.plot(sample=1, layers=[layer], heads="mean")
        (axes,) = [one for one in drawn.fig.axes if one.get_ylabel() == "query"]
        assert [label.get_text() for label in axes.get_yticklabels()] == read(x[along[0]])[1]
        assert [label.get_text() for label in axes.get_xticklabels()] == read(x[along[1]])[1]


@pytest.mark.parametrize("kind", ["whisper", "vision"])
def test_what_has_no_tokens_gets_none(kind):
    found = lens_of(kind).attention(inputs(kind))
    for layer in found:
        cross = "encoder_attn" in layer or "crossattention" in layer
        tokens = read(ANSWER)[0]
        decodes = layer.startswith(("model.decoder", "decoder"))
        queries, keys = found.tokens_along(layer, 0)
        assert queries == (tokens if decodes else None) and keys == (tokens if decodes and not cross else None)
        found.plot(sample=0, layers=[layer], heads="mean")


def test_labels_of_queries_and_keys_can_be_given():
    lens = Lens(Fixed(), tokenizer=Tokenizer())
    found = lens.attention({"first": SOURCE, "second": ANSWER})
    layer = next(name for name in found if "multihead_attn" in name)
    assert found.inputs == {} and found.tokens_along(layer, 0) == (None, None)
    silent = found.plot(sample=0, layers=[layer], heads="mean")
    written = [text.get_text() for text in silent.fig.findobj(lambda one: hasattr(one, "get_text"))]
    assert any("labels=(queries, keys)" in text for text in written)
    drawn = found.plot(sample=0, layers=[layer], heads="mean", labels=(list("abcde"), list("vwxyz")))
    (axes,) = [one for one in drawn.fig.axes if one.get_ylabel() == "query"]
    assert [label.get_text() for label in axes.get_yticklabels()] == list("abcde")
    with pytest.raises(PlotError, match=r"4 labels for 5 tokens.*labels=\(queries, keys\)"):
        found.plot(sample=0, layers=[layer], heads="mean", labels=(list("abcde"), list("wxyz")))


def test_a_part_of_the_queries_keeps_its_tokens():
    found = lens_of("t5").attention(inputs("t5", ANSWER[:, :3]), queries=-1, keys=[0, -1])
    layer = next(name for name in found if "EncDec" in name)
    assert found.inputs[layer] == ("decoder_input_ids", "input_ids") and found[layer].shape[-2:] == (1, 2)
    drawn = found.plot(sample=0, layers=[layer], heads="mean")
    (axes,) = [one for one in drawn.fig.axes if one.get_ylabel() == "query"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["w5", "w17"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["w33"]


def test_the_positions_of_a_logit_lens_are_those_of_the_answer():
    x = inputs("t5", ANSWER[:1], slice(0, 1))
    found = lens_of("t5").logit_lens(x, layers="decoder.block.*")
    assert found.columns == tuple(f"{place} 'w{index}'" for place, index in enumerate(ANSWER[0].tolist()))


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
def test_keys_of_a_cache_have_no_tokens():
    from tests.inputs.test_held_state import NEW, filled, language_model

    lens = Lens(language_model(), tokenizer=Tokenizer())
    found = lens.attention({"input_ids": NEW, "past_key_values": filled("dynamic")})
    drawn = found.plot(sample=0, layers=found.layers[:1], heads="mean")
    (axes,) = [one for one in drawn.fig.axes if one.get_ylabel() == "query"]
    assert [label.get_text() for label in axes.get_yticklabels()] == read(NEW)[0]
    assert not [label for label in axes.get_xticklabels() if label.get_text()]
