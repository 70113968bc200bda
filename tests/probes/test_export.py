"""Records as arrays, datasets and tables, and where two of them differ."""

import tempfile

import numpy as np
import pytest
import torch
from torch import nn

from layerlens import Record, capture, errors
from tests.cases import CASES
from tests.probes.test_record_batches import record_of


def test_every_case_has_its_views(case):
    record = capture(case.build(), case.example(), lambda path, module: True)
    arrays, data, table = record.numpy(), record.to_xarray(), record.to_pandas()
    assert list(arrays) == list(data) == list(table.index)
    assert data.sizes.get("batch", 2) == 2
    for name, array in arrays.items():
        assert data[name].shape == array.shape == table.loc[name, "shape"]
        assert table.loc[name, "mean"] == pytest.approx(array.astype(np.float64).mean(), rel=1e-6, abs=1e-12)
        assert table.loc[name, "zeros"] == (array == 0).mean()


def test_the_states_of_a_recurrent_layer_have_axes_of_their_own():
    record = capture(CASES["lstm"].build(), CASES["lstm"].example(), "rnn")
    data = record.to_xarray()
    assert data["rnn:0"].dims == ("batch", "rnn:0_time", "rnn:0_unit")
    assert data["rnn:1.0"].dims == ("rnn:1.0_layer", "batch", "rnn:1.0_unit")
    assert record.axes("rnn/output") == ("batch", "time", "unit")
    with pytest.raises(errors.SelectionError, match="'rnn/output', 'rnn/h_n', 'rnn/c_n'"):
        record.axes("rnn")


def test_places_have_coordinates_in_entries_of_the_input():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.AvgPool2d(2))
    record = capture(net, torch.zeros(2, 1, 16, 24))
    data = record.to_xarray()
    assert record.axes("1") == ("batch", "unit", "height", "width")
    assert data["1"].dims == ("batch", "1_unit", "1_height", "1_width")
    assert data["1"].coords["1_height"].values.tolist() == [1, 5, 9, 13] and data["0"].coords["0_width"][1] == 2
    again = Record.load(record.save(tempfile.mkdtemp() + "/record"))
    assert again.axes("1") == record.axes("1") and again.to_xarray().equals(data)


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda x: x.bfloat16(), np.float32),
        (lambda x: x.to(torch.float8_e4m3fn), np.float32),
        (lambda x: x.to_sparse(), np.float32),
        (lambda x: x.long(), np.int64),
        (lambda x: torch.complex(x, x).conj(), np.complex64),
        (lambda x: x[:, :0], np.float32),
    ],
    ids=["bfloat16", "float8", "sparse", "int64", "conjugate", "no entries"],
)
def test_arrays_of_every_kind(make, dtype):
    record = record_of(make, torch.arange(12.0).reshape(4, 3))
    array, row = record.numpy()["(model)"], record.to_pandas().iloc[0]
    assert array.dtype == dtype and row["not finite"] == 0
    if array.size:
        assert row["max"] == pytest.approx(np.abs(array).max()) and row["zeros"] == 1 / 12


def test_tensors_that_are_no_arrays():
    with pytest.raises(errors.RecordError, match=r"layer '', call 0: float32 \(4, 3\) has no data"):
        record_of(lambda x: x.to("meta")).numpy()
    record = record_of(lambda x: {1: x, "1": x + 1})
    for view in (record.numpy, record.to_xarray):
        with pytest.raises(errors.RecordError, match="two tensors of its output have the name '\\(model\\):1'"):
            view()
    assert len(record.to_pandas()) == 2


@pytest.mark.parametrize(
    ("one", "other", "text"),
    [
        (lambda x: (x, 3), lambda x: (x, 4), "3 in one, 4 in the other"),
        (lambda x: (x, None), lambda x: (x, x), "None in one, a tensor in the other"),
        (lambda x: (x, x), lambda x: [x, x], "tuple of 2 in one, list of 2 in the other"),
        (lambda x: {"a": x}, lambda x: {"b": x}, "dict with a in one, dict with b in the other"),
        (lambda x: {1: x, "1": x}, lambda x: {1: x + 1, "1": x}, "values differ by up to 1"),
        (lambda x: torch.complex(x, x), lambda x: torch.complex(x, x + 1), "values differ by up to 1"),
        (lambda x: torch.tensor([2**62]), lambda x: torch.tensor([2**62 + 1]), "values differ by up to 1"),
        (lambda x: x / 0, lambda x: -x / 0, "values differ by up to inf"),
        (lambda x: x.bfloat16(), lambda x: x, "bfloat16 (4, 3) in one, float32 (4, 3) in the other"),
    ],
)
def test_what_differs_is_told(one, other, text):
    x = torch.arange(1.0, 13.0).reshape(4, 3)
    first, second = record_of(one, x), record_of(other, x)
    assert first.difference(second) == f"layer '', call 0: {text}"
    assert first.difference(first) is None and second.difference(record_of(other, x)) is None


def test_numbers_beside_tensors_have_the_same_tolerance():
    one, other = record_of(lambda x: (x, 1.0, float("nan"))), record_of(lambda x: (x, 1.01, float("nan")))
    assert one.difference(other) is not None and one.difference(other, atol=0.02) is None


def test_objects_that_are_only_an_address_do_not_differ():
    assert record_of(lambda x: (x, object())).difference(record_of(lambda x: (x, object()))) is None
