"""Selections that say what they matched, name calls, and can be combined."""

import re

import pytest
import torch
from torch import nn

from layerlens import Lens, activation_maps, errors, select
from layerlens.model.layers import Layers


@pytest.fixture
def net():
    block = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    return nn.Sequential(block, nn.ReLU(), nn.Linear(2, 2), nn.Dropout(0.1))


def test_a_selection_prints_what_it_matched_and_why(net):
    lines = repr(Lens(net).select(["0.*", nn.Linear])).splitlines()
    assert lines[0] == "3 of 6 layers"
    assert [line.split(maxsplit=2) for line in lines[1:]] == [
        ["0.0", "Linear", "glob '0.*'; type Linear"],
        ["0.1", "ReLU", "glob '0.*'"],
        ["2", "Linear", "type Linear"],
    ]


@pytest.mark.parametrize(
    ("selection", "why"),
    [
        (None, "every layer"),
        ("2", "its path"),
        (re.compile("^2"), "the regular expression '^2'"),
        ((nn.Linear, nn.ReLU), "type Linear, ReLU"),
        (lambda path, module: path == "2", "predicate <lambda>"),
        ("2#1", "its path"),
    ],
)
def test_each_kind_of_selection_has_its_reason(net, selection, why):
    assert select(net, selection).why["2"] == why


def test_a_module_and_an_alias_have_theirs(net):
    net.append(net[2])
    assert select(net, net[2]).why == {"2": "this Linear object"}
    assert select(net, "4").why == {"2": "another name, 4"}


def test_selections_are_sets_in_definition_order(net):
    everything, linear, relu = select(net), select(net, nn.Linear), select(net, nn.ReLU)
    assert everything - linear - relu == ["0", "3"]
    assert relu | linear == ["0.0", "0.1", "1", "2"]
    assert select(net, "0.*") & linear == ["0.0"]
    assert Layers(net).select(everything - linear) == ["0", "0.1", "1", "3"]
    with pytest.raises(errors.LayerNotFound, match="no layer is left"):
        _ = linear & relu
    with pytest.raises(errors.SelectionError, match="same model"):
        _ = linear | select(nn.ReLU())
    with pytest.raises(errors.SelectionError, match="same model"):
        _ = linear | ["0"]


def test_calls_are_parts_of_a_set(net):
    first, later, all_calls = select(net, "1#0"), select(net, "1#1,4"), select(net, "1")
    assert (first | later).calls == {"1": frozenset({0, 1, 4})}
    assert ((first | later) - first).calls == later.calls
    assert (all_calls & later).calls == later.calls
    assert (all_calls | later).calls == {"1": None}
    assert select(net, ["1#0", "1#2"]).calls == {"1": frozenset({0, 2})}
    assert "1#1,4  ReLU" in repr(later)
    assert select(net, "**#0").calls["0.1"] == frozenset({0})
    with pytest.raises(errors.LayerNotFound, match="no layer is left"):
        _ = first & later
    with pytest.raises(errors.SelectionError, match="the number of calls is unknown"):
        _ = all_calls - first


def test_a_call_is_refused_where_a_layer_is_wanted():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(errors.SelectionError, match=r"'1#0' names a call, but a layer is needed"):
        Layers(net).select("1#0")
    with pytest.raises(errors.SelectionError, match="names a call"):
        activation_maps(net, torch.ones(1, 1, 4, 4), "0#0")
    with pytest.raises(errors.LayerNotFound, match=r"no layer '7'"):
        select(net, "7#0")


def test_a_name_with_a_hash_is_a_name(net):
    net.add_module("odd#1", nn.ReLU())
    assert select(net, "odd#1").calls == {"odd#1": None}


def test_long_selections_are_cut_when_printed():
    net = nn.Sequential(*[nn.ReLU() for _ in range(100)])
    assert "... 78 more" in repr(select(net))
    assert len(repr(select(net)).splitlines()) == 24
