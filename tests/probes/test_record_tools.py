"""Records by sample, stacked, compared, on disk, and for other tools."""

import collections
import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from layerlens import Record, capture, errors
from tests.cases import CASES

Pair = collections.namedtuple("Pair", ["left", "right"])


@dataclasses.dataclass
class Answer:
    """What `Nests` returns in its first place."""

    values: torch.Tensor
    extra: object = None


class Nests(nn.Module):
    """Returns tensors in every kind of nest."""

    def forward(self, x):
        return Answer(x, {"pair": Pair(x + 1, None)}), [x.to(torch.bfloat16), (x > 0, 3)]


def digits_like(count=6):
    torch.manual_seed(0)
    return torch.randn(count, 1, 8, 8)


def cnn():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4)).eval()


@pytest.mark.parametrize("index", [2, slice(1, 4), [5, 0, -1], slice(None, None, 2)])
def test_samples_are_those_of_a_run_of_them(index):
    model, x = cnn(), digits_like()
    part = capture(model, x).samples(index)
    rows = x[[index] if isinstance(index, int) else index]
    assert part.difference(capture(model, rows), atol=1e-6) is None
    assert part.selected == capture(model, x).selected


def test_stacked_batches_are_one_batch():
    model, x = cnn(), digits_like()
    whole = Record.stack([capture(model, rows) for rows in x.split([1, 2, 3])])
    assert whole.difference(capture(model, x), atol=1e-6) is None
    with pytest.raises(errors.RecordError, match="record 1 holds other calls"):
        Record.stack([capture(model, x), capture(model, x, "0")])
    with pytest.raises(errors.RecordError, match="cannot be stacked; pad"):
        Record.stack([capture(nn.Identity(), torch.ones(2, 3), [""]), capture(nn.Identity(), torch.ones(2, 4), [""])])
    with pytest.raises(errors.OptionError, match="no records"):
        Record.stack([])


@pytest.mark.parametrize("batch_first", [True, False])
def test_an_lstm_is_cut_along_its_own_batch_axes(batch_first):
    torch.manual_seed(0)
    model = nn.LSTM(3, 4, num_layers=2, batch_first=batch_first)
    x = torch.randn(2, 5, 3) if batch_first else torch.randn(5, 2, 3)  # two samples, as many as layers
    record = capture(model, x, [""])
    one = record.samples(1)
    rows = x[1:] if batch_first else x[:, 1:]
    assert one.difference(capture(model, rows, [""]), atol=1e-6) is None
    assert Record.stack([record.samples(0), one]).difference(record) is None


@pytest.mark.parametrize("name", ["hf_vit", "hf_gpt2", "lstm", "vae", "cnn"])
def test_the_rows_of_the_cases_survive_the_disk_and_back(name, tmp_path):
    case = CASES[name]
    record = capture(case.build(), case.example())
    again = Record.load(record.save(tmp_path / "run"))
    assert again.difference(record) is None and again.selected == record.selected
    assert [(call.type, call.axes, call.order) for call in again.order] == [
        (call.type, call.axes, call.order) for call in record.order
    ]


def test_nests_come_back_as_plain_nests(tmp_path):
    record = capture(Nests(), torch.randn(2, 3), [""])
    path = record.save(tmp_path / "nests.safetensors")
    answer, (half, (positive, three)) = Record.load(path)[""]
    original = record[""]
    assert torch.equal(answer["values"], original[0].values) and answer["extra"]["pair"]["right"] is None
    assert half.dtype == torch.bfloat16 and positive.dtype == torch.bool and three == 3
    assert [file.name for file in tmp_path.iterdir()] == ["nests.safetensors"]


def test_partial_and_stopped_records_stay_so(tmp_path):
    record = capture(cnn(), digits_like(), "0", stop=True)
    assert record.samples(0).stopped and Record.load(record.save(tmp_path / "a")).stopped
    record.partial = True
    assert record.samples(0).partial and Record.load(record.save(tmp_path / "b")).partial
    assert Record.stack([record, record]).partial


def test_files_that_are_none_are_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(errors.ResultFileError, match="there is no file"):
        Record.load(tmp_path / "nothing")
    with pytest.raises(errors.ResultFileError, match="does not exist"):
        capture(cnn(), digits_like()).save(tmp_path / "no" / "run")
    save_file({"a": torch.ones(1)}, str(tmp_path / "foreign.safetensors"))
    with pytest.raises(errors.ResultFileError, match="has format None"):
        Record.load(tmp_path / "foreign.safetensors")
    path = capture(cnn(), digits_like()).save(tmp_path / "run")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(errors.ResultFileError, match="damaged"):
        Record.load(path)
    about = {"format": "layerlens-record/1", "record": json.dumps({"selected": []})}
    save_file({"a": torch.ones(1)}, str(tmp_path / "half.safetensors"), metadata=about)
    with pytest.raises(errors.ResultFileError, match="not a record of layerlens, or is damaged"):
        Record.load(tmp_path / "half.safetensors")


def test_arrays_and_names():
    record = capture(Nests(), torch.ones(2, 3), [""])
    arrays = record.numpy()
    assert list(arrays) == ["(model):0.values", "(model):0.extra.pair.left", "(model):1.0", "(model):1.1.0"]
    assert arrays["(model):1.0"].dtype == np.float32
    twice = nn.Linear(2, 2)
    record = capture(nn.Sequential(twice, twice), torch.ones(1, 2))
    assert list(record.numpy()) == ["0", "0#1"]


def test_statistics_as_a_table():
    class Makes(nn.Module):
        def forward(self, x):
            return torch.tensor([[0.0, 2.0, float("inf"), 0.0]])

    table = capture(nn.Sequential(Makes()), torch.ones(1, 1)).to_pandas()
    row = table.loc["0"]
    assert (row["mean"], row["min"], row["max"], row["zeros"], row["not finite"]) == (2 / 3, 0, 2, 0.5, 1)
    assert row["std"] == pytest.approx(np.std([0, 2, 0])) and row["shape"] == (1, 4)
    assert len(capture(cnn(), digits_like(), "0#7").to_pandas()) == 0


def test_a_dataset_with_named_axes():
    data = capture(cnn(), digits_like()).to_xarray()
    assert data["0"].dims == ("batch", "0_unit", "0_height", "0_width") and data.sizes["batch"] == 6
    assert data["4"].attrs["type"] == "Linear"


def test_where_two_records_differ():
    model, x = cnn(), digits_like()
    record = capture(model, x)
    other = capture(model, x, edits={"2": lambda output: output + 0.25})
    assert record.difference(record) is None
    assert record.difference(other) == "layer '2', call 0: values differ by up to 0.25"
    assert record.difference(other, atol=10) is None
    assert "holds 5 calls, the other 1" in record.difference(capture(model, x, "0"))
    assert "is 0#0 in one and 1#0" in record.difference(capture(model, x, "1"))
    assert "float32 (6, 3, 6, 6) in one, float32 (2, 3, 6, 6)" in record.difference(capture(model, x[:2]))


def test_what_has_no_samples_is_told():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.ones(7)

    model = nn.Sequential(nn.Identity(), Odd())
    record = capture(model, torch.ones(3, 2))
    with pytest.raises(errors.OptionError, match=r"samples 3 are not in a record of"):
        capture(model, torch.ones(3, 2), "0").samples(3)
    with pytest.raises(errors.RecordError, match=r"layer '1', call 0: float32 \(7\,\) has no axis"):
        Record.stack([record, record])
    with pytest.raises(errors.RecordError, match="no tensor with a batch axis"):
        capture(model, torch.ones(3, 2), "0#5").samples(0)
