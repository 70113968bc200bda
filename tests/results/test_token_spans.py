import dataclasses
import warnings

import pytest
import torch

from layerlens import Attribution
from layerlens.errors import InputError
from layerlens.results import load
from layerlens.results.maps.token_spans import join, word_groups


def attribution(values, tokens=None, **fields):
    values = torch.tensor(values)
    known = {"axes": ("batch", "token"), "signed": True, "units": "score", "target": "t", "method": "m"}
    return Attribution(values, score=torch.ones(len(values)), settings={"a": 1}, tokens=tokens, **{**known, **fields})


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["The", "Ġcap", "ital", "Ġof", "ĠFrance", "."], ["The", " capital", " of", " France", "."]),
        (["▁The", "▁cap", "ital", ",", "▁so"], [" The", " capital", ",", " so"]),
        (["<s>", "▁un", "real", "</s>"], ["<s>", " unreal", "</s>"]),
        (
            ["[CLS]", "un", "##real", "words", "!", "[SEP]", "[PAD]"],
            ["[CLS]", "unreal", "words", "!", "[SEP]", "[PAD]"],
        ),
        (["[CLS]", "whole", "words", "[SEP]"], ["[CLS]", "whole", "words", "[SEP]"]),
        (["ĠZ", "Ã¼", "rich", "Ċ", "Next"], [" Zürich", "\n", "Next"]),
        (["2", "+", "3", "="], ["2", "+", "3", "="]),
        (["Ġdon", "'t", "Ġstop"], [" don't", " stop"]),
        (["Ġ(", "one", ")"], [" (", "one", ")"]),
        (["<|im_start|>", "user", "Ċ", "Hi"], ["<|im_start|>", "user", "\n", "Hi"]),
        ([" plain", " text", "ual"], [" plain", " textual"]),
    ],
)
def test_tokens_make_words(tokens, words):
    assert [join(tokens[start:stop]) for start, stop in word_groups(tokens)] == words


def test_words_are_the_sums_of_their_tokens():
    result = attribution([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], [["A", "Ġb", "c", "d"], ["A", "Ġb", "Ġc", "d"]])
    words = result.by_word()
    assert words.tensor.tolist() == [[1, 9, 0], [5, 6, 15]]
    assert words.tokens == [["A", "bcd", ""], ["A", "b", "cd"]]
    assert [words.plot(sample=sample).data["values"].tolist() for sample in (0, 1)] == [[1, 9], [5, 6, 15]]
    assert words.axes == ("batch", "word") and words.settings == {"a": 1, "summed over": "words"}
    assert words.tensor.sum() == result.tensor.sum() and result.tokens[0] == ["A", "Ġb", "c", "d"]


def test_spans_by_tokens_and_by_text():
    result = attribution([[1.0, 2.0, 4.0, 8.0, 16.0]], [["The", "Ġcap", "ital", "Ġof", "ĠFrance"]])
    spans = result.by_span([(0, 2), "The capital", "France", (1, 5)])
    assert spans.tensor.tolist() == [[3, 7, 16, 30]]
    assert spans.tokens == [["The cap", "The capital", "France", "capital of France"]]
    assert attribution([[1.0, 2.0]]).by_span([(0, 1), (0, 2)]).tokens == [["0-0", "0-1"]]
    pieces = attribution([[1.0, 2.0, 4.0, 8.0]], [["[CLS]", "un", "##real", "words"]])
    assert pieces.by_span(["unreal words"]).tensor.tolist() == [[14]]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ("The", "spans must be a list"),
        ([], "spans must be a list"),
        ([(1, 1)], r"the span \(1, 1\) holds no tokens of 3"),
        ([(0, 4)], "holds no tokens of 3"),
        ([(0, 1, 2)], r"a span is \(start, stop\)"),
        (["the"], "there 2 times as whole tokens in 'the cat the'"),
        (["dog"], "'dog' is not there as whole tokens"),
    ],
)
def test_a_span_that_is_none(spans, message):
    with pytest.raises(InputError, match=message):
        attribution([[1.0, 2.0, 3.0]], [["the", "Ġcat", "Ġthe"]]).by_span(spans)


def test_no_words_without_texts_and_without_tokens():
    with pytest.raises(InputError, match="the texts of the tokens are not known"):
        attribution([[1.0, 2.0]]).by_word()
    with pytest.raises(InputError, match="the texts of the tokens are not known; give"):
        attribution([[1.0, 2.0]]).by_span(["a"])
    with pytest.raises(InputError, match="one number per token"):
        attribution([[[1.0, 2.0]]], axes=None).by_word()
    with pytest.warns(UserWarning, match="none of the 2 tokens says where a word begins"):
        assert attribution([[1.0, 2.0]], [["a", "b"]]).by_word().tokens == [["a", "b"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attribution([[1.0, 2.0]], [["a", "Ġb"]]).by_word()


def test_words_are_a_plain_attribution_that_is_saved_and_drawn(tmp_path):
    result = attribution([[1.0, -2.0, 3.0]], [["The", "Ġcap", "ital"]], standard_error=torch.ones(1, 3))
    words = result.by_word()
    assert words.standard_error is None and type(words) is Attribution
    again = load(words.save(tmp_path / "w"))
    assert again.tokens == words.tokens and torch.equal(again.tensor, words.tensor)
    assert words.plot().data["values"].tolist() == [1, 1]
    assert dataclasses.replace(words, axes=None).plot().data["values"].tolist() == [1, 1]
