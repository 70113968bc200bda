import collections
import dataclasses
import types
import typing

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from layerlens.model.trees import describe, first_tensor, map_tensors, named_tensors, version


class Pair(typing.NamedTuple):
    left: torch.Tensor
    right: object


@dataclasses.dataclass(frozen=True)
class Frozen:
    tensor: torch.Tensor
    rest: list
    name: str = "frozen"


class Tuple(tuple):
    pass


class Picky(list):
    def __init__(self, one, two):
        super().__init__([one, two])


ONE = torch.ones(2)
VALUES = [
    ONE,
    (ONE, None, 3),
    [ONE, "text"],
    {"a": ONE, 5: {"b": ONE}},
    collections.OrderedDict(a=ONE, b=None),
    collections.defaultdict(lambda: ONE, a=ONE),
    collections.UserDict({"a": ONE}),
    Pair(ONE, (ONE, None)),
    Frozen(ONE, [ONE]),
    Tuple([ONE, 1]),
    torch.max(torch.ones(2, 2), dim=1),
    pack_padded_sequence(torch.ones(2, 3, 1), torch.tensor([3, 2]), batch_first=True),
    None,
    Frozen,
    (),
    torch.Size([2, 3]),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_the_structure_stays_and_every_tensor_is_replaced(value):
    doubled = map_tensors(value, lambda tensor: tensor * 2)
    assert type(doubled) is type(value)
    before, after = dict(named_tensors(value)), dict(named_tensors(doubled))
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor * 2)
    assert describe(doubled) == describe(value)


def test_the_given_value_is_not_changed():
    value = {"a": [ONE], "b": Frozen(ONE, [ONE])}
    twin = map_tensors(value, torch.zeros_like)
    assert value["a"][0] is ONE and value["b"].tensor is ONE and value["b"].rest[0] is ONE
    assert not twin["b"].rest[0].any() and twin["b"].name == "frozen"


def test_a_default_dict_keeps_its_default():
    assert map_tensors(collections.defaultdict[str, object](list, a=ONE), torch.neg)["new"] == []


def test_sequences_and_mappings_that_cannot_be_rebuilt_become_plain():
    assert map_tensors(Picky(ONE, ONE), torch.neg) == [pytest.approx(-ONE), pytest.approx(-ONE)]
    mapped = map_tensors(types.MappingProxyType({"a": ONE}), torch.neg)
    assert torch.equal(mapped["a"], -ONE)


def test_names_lead_to_the_tensor():
    value = (ONE, {"k": [None, Pair(ONE, ONE)]}, Frozen(ONE, [ONE]))
    assert [name for name, _ in named_tensors(value)] == ["0", "1.k.1.left", "1.k.1.right", "2.tensor", "2.rest.0"]
    assert [name for name, _ in named_tensors(ONE)] == [""]
    assert list(named_tensors("text")) == list(named_tensors(None)) == []


def test_the_first_tensor():
    assert first_tensor((None, [3, {"a": ONE}])) is ONE
    assert first_tensor({"a": None}) is None


def test_version_counts_writes_also_through_views():
    tensor = torch.zeros(3)
    before = version(tensor)
    tensor[0] = 1
    assert version(tensor) == version(tensor.detach()) == before + 1
    with torch.inference_mode():
        assert version(torch.zeros(2).add_(1)) == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(1, 3, dtype=torch.bfloat16), "bfloat16 (1, 3)"),
        ({"a": 1, 2: 3}, "dict with a, 2"),
        ((1, 2), "tuple of 2"),
        ([], "list of 0"),
        (Pair(ONE, 1), "Pair of 2"),
        (None, "NoneType"),
        (3.5, "float"),
    ],
)
def test_describe(value, text):
    assert describe(value) == text
