import re

import pytest
import torch
from torch import nn

from layerlens.errors import LayerNotFound, SelectionError
from layerlens.model.layers import Layers, parameter_count, select


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(2))
        self.head = nn.Linear(4, 2)
        self.tied = self.blocks[0][0]  # a second name of one module

    def forward(self, x):
        return x


@pytest.fixture
def net():
    return Net()


BLOCKS = ["blocks.0", "blocks.1"]
LINEAR = ["blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2", "head"]


def test_none_selects_every_layer_but_the_model(net):
    everything = ["stem", "blocks", *BLOCKS[:1], "blocks.0.0", "blocks.0.1", "blocks.0.2"]
    everything += ["blocks.1", "blocks.1.0", "blocks.1.1", "blocks.1.2", "head"]
    assert select(net) == everything
    assert select(nn.ReLU()) == [""]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("blocks.*", BLOCKS),
        ("blocks.?", BLOCKS),
        ("blocks.*.0", ["blocks.0.0", "blocks.1.0"]),
        ("blocks.**", [f"blocks.{k}{rest}" for k in "01" for rest in ("", ".0", ".1", ".2")]),
        ("**.2", ["blocks.0.2", "blocks.1.2"]),
        ("*", ["stem", "blocks", "head"]),
        ("[sh]*", ["stem", "head"]),
        ("[!s]*", ["blocks", "head"]),
        ("h*d", ["head"]),
    ],
)  # fmt: skip
def test_a_glob_stays_within_one_part_and_two_stars_cross_dots(net, glob, expected):
    if glob == "*":  # the alias `tied` stands for the layer that it names
        expected = ["stem", "blocks", "blocks.0.0", "head"]
    if glob == "[!s]*":
        expected = ["blocks", "blocks.0.0", "head"]
    assert select(net, glob) == expected


def test_no_pattern_matches_the_model_itself(net):
    assert "" not in select(net, "**")
    assert "" not in select(net, re.compile(".*"))
    assert select(net, "") == [""]


def test_a_regular_expression_searches(net):
    assert select(net, re.compile(r"\.2$")) == ["blocks.0.2", "blocks.1.2"]
    assert select(net, re.compile("ea")) == ["head"]


def test_a_dot_of_a_glob_is_a_dot():
    model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.ReLU()}), "axb": nn.ReLU()})
    assert select(model, "a.[b]") == ["a.b"]


def test_types(net):
    assert select(net, nn.Linear) == LINEAR
    assert select(net, (nn.Linear, nn.Conv2d)) == ["stem", *LINEAR]


def test_a_predicate_gets_path_and_module(net):
    assert select(net, lambda path, module: path.startswith("blocks") and isinstance(module, nn.ReLU)) == [
        "blocks.0.1",
        "blocks.1.1",
    ]


def test_a_module_selects_itself_by_identity(net):
    assert select(net, net.blocks[1][2]) == ["blocks.1.2"]


def test_a_list_joins_once_each_in_definition_order(net):
    assert select(net, ["head", nn.Conv2d, "blocks.*.2", net.head, re.compile("^stem$")]) == [
        "stem",
        "blocks.0.2",
        "blocks.1.2",
        "head",
    ]
    assert select(net, ("head", nn.Conv2d)) == ["stem", "head"]


def test_a_shared_module_is_listed_once_and_found_by_every_name(net):
    layers = Layers(net)
    assert layers.aliases == {"tied": "blocks.0.0"}
    assert layers.select("tied") == layers.select("tie*") == ["blocks.0.0"]
    assert layers["tied"] is net.tied and layers.canonical("tied") == "blocks.0.0"
    assert "tied" in layers and "tied" not in list(layers)


def test_layers_is_a_mapping(net):
    layers = Layers(net)
    assert len(layers) == len(list(layers)) == 12
    assert layers["head"] is net.head and layers[""] is net
    assert "head" in layers and "hed" not in layers and 3 not in layers
    assert repr(layers) == "Layers(11 in Net: stem, blocks, blocks.0, blocks.0.0, blocks.0.1, blocks.0.2, ...)"


# -- refusals: what failed, what was given, what to try ----------------------------------------------------------------


def test_an_unknown_path_names_the_nearest(net):
    with pytest.raises(LayerNotFound) as error:
        select(net, "blocks.0.9")
    text = str(error.value)
    head, near = text.split("Closest: ")
    assert head == "no layer 'blocks.0.9' in Net (11 layers). "
    assert near.endswith(". List all: lens.layers()")
    assert set(near.split(". List")[0].split(", ")) == {"blocks.0.0", "blocks.0.1", "blocks.0.2"}


def test_case_does_not_hide_the_nearest(net):
    with pytest.raises(LayerNotFound, match=r"no layer 'HEAD' in Net \(11 layers\)\. Closest: head\."):
        select(net, "HEAD")


def test_nothing_near_suggests_nothing(net):
    with pytest.raises(LayerNotFound, match=r"^no layer 'zzz' in Net \(11 layers\)\. List all: lens\.layers\(\)$"):
        select(net, "zzz")


def nothing(path, module):
    return False


@pytest.mark.parametrize(
    ("selection", "text"),
    [
        ("heads*", "heads* matches no layer in Net (11 layers). Closest: head."),
        (re.compile("heax"), "the regular expression 'heax' matches no layer in Net (11 layers). Closest: head."),
        (nn.LSTM, "LSTM matches no layer in Net (11 layers)."),
        (nn.Tanh(), "this Tanh object matches no layer in Net (11 layers)."),
        (nothing, "nothing matches no layer in Net (11 layers)."),
        (["head", "hea"], "no layer 'hea' in Net (11 layers). Closest: head"),
        ([], "an empty list selects no layer; pass None for every layer."),
        ((), "an empty list selects no layer; pass None for every layer."),
    ],
)
def test_an_empty_match_is_an_error(net, selection, text):
    with pytest.raises(LayerNotFound) as error:
        select(net, selection)
    assert str(error.value).startswith(text)


def test_a_selection_of_another_kind_is_refused(net):
    with pytest.raises(SelectionError, match=r"^cannot select layers by int 3\. Use a path, a glob, re\.compile"):
        select(net, 3)


@pytest.mark.parametrize("glob", ["[z-a]", "[!]"])
def test_a_glob_that_cannot_be_read_is_refused(net, glob):
    with pytest.raises((SelectionError, LayerNotFound), match=re.escape(glob)):
        select(net, glob)


def test_a_bracket_without_its_end_is_a_letter(net):
    for glob in ("a[", "a[]"):
        with pytest.raises(LayerNotFound, match=re.escape(f"{glob} matches no layer")):
            select(net, glob)


def test_a_path_that_looks_like_a_glob_is_a_path_first():
    model = nn.Module()
    model.add_module("act[0]", nn.ReLU())
    model.add_module("act0", nn.ReLU())
    assert select(model, "act[0]") == ["act[0]"]


def test_every_layer_of_every_case_is_selected_by_its_path(case):
    layers = Layers(case.build())
    for path in layers:
        assert layers.select(path) == [path]
        assert layers.select(layers[path]) == [path]


def test_parameters_are_counted_once():
    one = nn.Linear(3, 2)
    model = nn.Sequential(one, nn.ReLU(), one)
    assert parameter_count(model) == 8
    assert parameter_count(model, seen=[id(one.weight)]) == 2
    assert parameter_count(nn.Sequential(nn.Embedding(4, 2), torch.nn.ReLU())) == 8
