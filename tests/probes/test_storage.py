"""Records on disk: what is read is what was written, and nothing else is read."""

import collections
import dataclasses
import json
import stat

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from layerlens import Record, capture, errors
from tests.cases import CASES, normal
from tests.probes.test_record_batches import record_of

Pair = collections.namedtuple("Pair", ["left", "right"])


@dataclasses.dataclass
class Answer:
    """A value in a field."""

    values: object
    rest: object = None


VALUES = {
    "nothing": lambda x: None,
    "empty tuple": lambda x: (),
    "no axes": lambda x: x.sum(),
    "no entries": lambda x: x[:, :0],
    "bfloat16": lambda x: x.bfloat16(),
    "half": lambda x: x.half(),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "uint16": lambda x: x.abs().to(torch.uint16),
    "bool": lambda x: x > 0,
    "complex": lambda x: torch.complex(x, -x),
    "expanded": lambda x: x[:, :1].expand(4, 9),
    "transposed": lambda x: x.T,
    "twice": lambda x: (x, x),
    "not finite": lambda x: (x / 0, float("inf"), [float("nan")]),
    "keys that read alike": lambda x: {1: x, "1": x + 1, "a.b": x + 2, "a": {"b": x + 3}, None: x, 2.5: x},
    "keys of the format": lambda x: {"tensor": x, "plain": 1, "dict": {"tuple": (x, None)}},
    "named tuple": lambda x: Pair(x, Pair(None, x + 1)),
    "dataclass": lambda x: Answer(x, [Answer(None, {"a": x})]),
}


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_any_value_comes_back(make, tmp_path):
    record = record_of(make)
    again = Record.load(record.save(tmp_path / "run"))
    assert again.difference(record) is None and record.difference(again) is None
    if type(record[""]) is dict:
        assert list(again[""]) == list(record[""])


def test_states_and_model_outputs_come_back_plain(tmp_path):
    record = capture(CASES["lstm"].build(), CASES["lstm"].example(), "rnn")
    again = Record.load(record.save(tmp_path / "run"))
    assert type(again["rnn"]) is tuple and torch.equal(again["rnn"][1][0], record["rnn"][1][0])
    assert again.calls("rnn")[0].axes == record.calls("rnn")[0].axes
    assert again.calls("rnn")[0].axes["output"] == ("batch", "time", "feature")
    assert again.samples(1).difference(record.samples(1)) is None  # the axes are known after the disk as well
    model = CASES["hf_bert"].build()
    output = Record.load(capture(model, CASES["hf_bert"].example(), [""]).save(tmp_path / "bert"))[""]
    assert type(output) is dict and list(output) == ["logits"]


def test_a_file_is_as_readable_as_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    path = record_of(lambda x: x).save(tmp_path / "run")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_what_cannot_be_saved_leaves_the_old_file(tmp_path):
    path = record_of(lambda x: x).save(tmp_path / "run")
    before = path.read_bytes()
    for make in (lambda x: x.to_sparse(), lambda x: x.to("meta")):
        with pytest.raises(errors.ResultFileError, match=r"layer '', call 0: float32 .* which a file cannot hold"):
            record_of(make).save(path)
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_empty_records_come_back(tmp_path):
    record = capture(nn.Sequential(nn.ReLU(), nn.ReLU()), normal(1, 2), "0#7")
    again = Record.load(record.save(tmp_path / "run"))
    assert (again.selected, again.count, again.unrun) == (("0",), 0, ("0",))


@pytest.mark.parametrize(
    "change",
    [
        {"shape of value": "text"},
        {"shape of value": [1]},
        {"shape of value": None},
        {"shape of value": {"pickle": [1]}},
        {"shape of value": {"tensor": "missing"}},
        {"shape of value": {"tuple": [], "list": []}},
        {"layer": "of another model"},
        {"axes": 3},
    ],
    ids=str,
)
def test_descriptions_that_were_changed_are_refused(change, tmp_path):
    call = {"layer": "a", "index": 0, "type": "X", "axes": None, "seconds": None, "shape of value": {"tensor": "0:0"}}
    whole = {"selected": ["a"], "aliases": {}, "unedited": [], "partial": False, "stopped": False}
    path = tmp_path / "run.safetensors"
    for calls, good in (([call], True), ([call | change], False)):
        about = {"format": "layerlens-record/1", "record": json.dumps({**whole, "calls": calls})}
        save_file({"0:0": torch.ones(2)}, str(path), metadata=about)
        if good:
            assert Record.load(path)["a"].shape == (2,)
        else:
            with pytest.raises(errors.ResultFileError, match="not a record of layerlens, or is damaged"):
                Record.load(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x80\x04K\x01.", b"\xff" * 64], ids=["empty", "text", "pickle", "bits"]
)
def test_files_of_other_kinds_are_refused(content, tmp_path):
    (tmp_path / "run.safetensors").write_bytes(content)
    with pytest.raises(errors.ResultFileError, match="damaged"):
        Record.load(tmp_path / "run")
