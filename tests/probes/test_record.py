import pytest
import torch
from torch import nn

from layerlens.errors import OverwrittenError, RecordError
from layerlens.probes.call import Call
from layerlens.probes.probe import Probe
from layerlens.probes.record import Record
from layerlens.probes.run import capture
from tests.cases import CASES, normal


def call(layer="a", index=0, order=0, value=None, stored=()):
    return Call(layer, index, order, "Linear", None, torch.ones(2, 3) if value is None else value, stored=stored)


def record_of(*calls, selected=("a", "b")):
    record = Record(list(selected), {"alias": "a"})
    for entry in calls:
        record.add(entry)
    return record


def test_one_call_is_read_by_name_and_by_alias():
    record = record_of(call())
    assert record["a"] is record["alias"] and record["a"].shape == (2, 3)
    assert "a" in record and "alias" in record
    assert "b" not in record and "c" not in record and None not in record


def test_many_calls_are_never_last_wins():
    record = record_of(call(), call(index=1, order=1))
    assert [entry.index for entry in record.calls("a")] == [0, 1]
    with pytest.raises(RecordError) as error:
        record["a"]
    assert str(error.value) == "layer 'a' ran 2 times; take one with record.calls('a')[k].output"


def test_get_does_not_hide_that_a_layer_ran_twice():
    with pytest.raises(RecordError, match="ran 2 times"):
        record_of(call(), call(index=1, order=1)).get("a")


def test_a_layer_that_was_selected_and_did_not_run():
    record = record_of(call())
    assert record.calls("b") == [] and record.unrun == ("b",)
    with pytest.raises(RecordError) as error:
        record["b"]
    assert str(error.value) == (
        "layer 'b' did not run: the run took another route. Layers that did not run: record.unrun"
    )
    record.partial = True
    with pytest.raises(RecordError, match="did not run: the run ended by an error before it"):
        record["b"]


def test_a_layer_that_was_not_selected_names_the_nearest():
    record = record_of(selected=("encoder.layer.0", "encoder.layer.1"))
    with pytest.raises(RecordError) as error:
        record.calls("encoder.layer.9")
    text = str(error.value)
    assert text.startswith("layer 'encoder.layer.9' is not in this record of 2 layers. Closest: encoder.layer.")


def test_the_list_of_calls_is_a_copy():
    record = record_of(call())
    record.calls("a").clear()
    assert len(record.calls("a")) == 1


def test_order_is_the_route():
    record = record_of(call("b"), call("a", order=1), call("b", 1, 2))
    assert [(entry.layer, entry.index) for entry in record.order] == [("b", 0), ("a", 0), ("b", 1)]
    assert record.count == 3 and len(record) == 2 and list(record) == ["a", "b"]


def test_the_route_of_a_model_is_the_order_of_its_calls():
    record = capture(CASES["cnn"].build(), normal(2, 3, 8, 8))
    route = ["conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3", "relu", "pool", "fc"]
    assert [entry.layer for entry in record.order] == route


def test_a_record_is_equal_to_itself_only_and_hashable():
    one, two = record_of(call()), record_of(call())
    assert one == one and one != two and len({one, two}) == 2


def test_bytes_count_each_storage_once():
    shared = torch.zeros(10, 10)
    record = record_of(call(value=shared), call("b", 0, 1, value=(shared[:5], torch.zeros(4))))
    assert record.nbytes == 400 + 16


def test_overwriting_is_told_by_every_tensor_of_a_nested_value():
    part = torch.zeros(3)
    entry = call(value=(torch.ones(2), {"x": part}), stored=((part, part._version),))
    assert not entry.overwritten
    part.add_(1)
    assert entry.overwritten
    with pytest.raises(OverwrittenError, match="layer 'a', call 0: a later operation wrote into this output in place"):
        entry.output  # noqa: B018


def test_repr_tells_layers_calls_and_size():
    with Probe(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), ["", "*"]) as record:
        pass
    assert repr(record) == "Record(0 layers, 0 calls, 0.0 MiB, 3 did not run)"
    record = capture(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.ones(1, 2), ["", "*"])
    assert repr(record) == (
        "Record(3 layers, 3 calls, 0.0 MiB)\n"
        "  0 #0: Linear float32 (1, 3)\n"
        "  1 #0: ReLU float32 (1, 3)\n"
        "  (model) #0: Sequential float32 (1, 3)"
    )
    assert repr(record.calls("0")[0]) == "Call('0' #0, Linear: float32 (1, 3))"


def test_repr_of_many_calls_is_short():
    record = record_of(*(call(index=k, order=k) for k in range(30)))
    record.partial = True
    lines = repr(record).splitlines()
    assert lines[0] == "Record(1 layers, 30 calls, 0.0 MiB, 1 did not run, partial)"
    assert len(lines) == 12 and lines[9] == "  ... 20 more" and lines[-1].startswith("  a #29")
