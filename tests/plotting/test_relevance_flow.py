import dataclasses
import itertools

import pytest
import torch

from layerlens.errors import OptionError, PlotError
from layerlens.plotting import relevance_flow
from layerlens.results import Entry, Ledger

from .helpers import PATHS, ledger, profile, relevance, texts


def test_rows_go_from_the_score_against_execution_to_the_inputs():
    data = relevance_flow(ledger(10)).data
    assert data["name"].tolist() == ["score", *reversed(PATHS[:10]), "input pixels"]
    assert data["end"].tolist() == [True, *[False] * 10, True]


@pytest.mark.parametrize("layers", [5, 30])
def test_the_rows_and_the_residual_add_up_to_the_score(layers):
    book = ledger(layers, 3)
    for sample in (1, None):
        data = relevance_flow(book, sample).data
        ended = (data["additive"] + data["absorbed"])[1:].sum() + data["whole"][1:].sum()
        residual = float(book.residual.sum() if sample is None else book.residual[sample])
        assert ended + residual == pytest.approx(data["whole"][0], abs=1e-5)


def test_bars_are_the_rows_and_opposite_parts_stay_apart():
    plot = relevance_flow(ledger(7))
    bars = plot.axes[0].patches
    widths = sorted(bar.get_width() for bar in bars if bar.get_width())
    parts = [value for name in ("additive", "absorbed", "whole") for value in plot.data[name].tolist() if value]
    assert widths == pytest.approx(sorted(parts))
    spans = sorted((bar.get_y(), bar.get_y() + bar.get_height()) for bar in bars if bar.get_width())
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


def test_small_layers_are_summed_in_one_row():
    plot = relevance_flow(ledger(66), count=10)
    assert len(plot.data["name"]) == 13 and plot.data["name"][-2] == "56 smaller layers"
    sizes = abs(plot.data["additive"]) + abs(plot.data["absorbed"])
    book = ledger(66).by_layer()
    rest = [sum(part.abs().item() for part in book[path].values()) for path in PATHS if path not in plot.data["name"]]
    assert len(rest) == 56 and max(rest) <= sizes[1:11].min()


def test_the_note_states_score_gap_and_residual():
    entries = (Entry("input", "", "x", torch.tensor([2.0])), Entry("additive", "head", "bias", torch.tensor([1.5])))
    note = " ".join(texts(relevance_flow(Ledger(torch.tensor([4.0]), entries)))).replace("\n", " ")
    assert "score 4 = inputs 2 + additive 1.5 + absorbed 0 + residual 0.5" in note
    assert "conservation gap 50%, relative residual 0.12" in note


def test_every_row_has_its_number():
    shown = texts(relevance_flow(ledger(3)))
    assert "−10" in shown


def test_the_flow_is_drawn_where_it_is_known():
    result = relevance(10)
    plot = relevance_flow(result)
    known = {name: flow for name, flow in zip(plot.data["name"], plot.data["flow"], strict=True) if flow == flow}
    assert known == pytest.approx(dict(zip(result.profile.layers, result.profile.values.tolist(), strict=True)))
    labels = [text.get_text() for text in plot.axes[0].get_legend().get_texts()]
    assert labels == ["to additive constants", "absorbed by rules", "still flowing, at the layer's output"]


def test_the_flow_of_a_container_stands_at_its_last_layer():
    flow = dataclasses.replace(
        profile(1, error=False, null=False), layers=("encoder.layer.1",), values=torch.tensor([5.0])
    )
    data = relevance_flow(dataclasses.replace(relevance(10), profile=flow)).data
    assert [name for name, value in zip(data["name"], data["flow"], strict=True) if value == 5] == [
        "encoder.layer.1.output.dense"
    ]


def test_a_flow_summed_over_the_batch_is_not_drawn_for_one_sample():
    result = relevance(10, batch=2)
    assert not (relevance_flow(result, 0).data["flow"] == relevance_flow(result, 0).data["flow"]).any()
    assert (relevance_flow(result, None).data["flow"] == relevance_flow(result, None).data["flow"]).any()


@pytest.mark.parametrize(
    "given, options, error, expected",
    [
        (profile(), {}, PlotError, "draws a Relevance or a Ledger, not a LayerProfile"),
        (ledger(), {"sample": 1}, OptionError, "sample=1, but the ledger holds 1"),
        (ledger(), {"count": 0}, OptionError, "count=0 layers"),
        (Ledger(torch.tensor([torch.nan]), ()), {}, PlotError, "the score .*holds NaN"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_remedy(given, options, error, expected):
    with pytest.raises(error, match=expected):
        relevance_flow(given, **options)


def test_a_ledger_of_ends_alone_has_no_legend():
    """As of a model without biases, whose score reaches the input as a whole."""
    ledger = Ledger(torch.tensor([2.0]), (Entry("input", "", "ids", torch.tensor([2.0])),))
    plot = relevance_flow(ledger)
    assert plot.data["name"].tolist() == ["score", "input ids"] and plot.axes[0].get_legend() is None
