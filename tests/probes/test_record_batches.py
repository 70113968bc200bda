"""Records by sample: cutting and stacking are what running the samples by themselves would have given."""

import numpy as np
import pytest
import torch
from torch import nn

from layerlens import Record, capture, errors
from layerlens.inputs.inputs import as_inputs
from tests.cases import CASES, normal


class Gives(nn.Module):
    """Returns what a function makes of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def record_of(function, x=None):
    return capture(Gives(function), normal(4, 3) if x is None else x, [""])


DETERMINISTIC = [name for name in CASES if name not in ("vae", "nested")]  # noise; a count of samples in an output


APART = {"hf_llava": ("", "model"), "hf_whisper": ("model.encoder.embed_positions",), "hf_clip": ("",)}
"""Layers that return no rows of samples: a list with a tensor for each, a table of positions, a matrix of pairs."""


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_sample_of_a_record_is_the_record_of_that_sample(name):
    model, x = CASES[name].build(), CASES[name].example()

    def chosen(path, module):
        return path not in APART.get(name, ())

    whole = capture(model, x, chosen)
    for sample in range(2):
        alone = capture(model, as_inputs(x).rows(torch.tensor([sample])), chosen)
        if [call.layer for call in alone.order] == [call.layer for call in whole.order]:  # else another route
            assert whole.samples(sample).difference(alone, rtol=1e-4, atol=1e-5) is None


def test_position_embeddings_are_those_of_every_sample():
    case = CASES["hf_bert"]
    record = capture(case.build(), case.example(), "**.position_embeddings")
    name = record.selected[0]
    both = capture(case.build(), case.example(), [name, "classifier"])
    assert torch.equal(both.samples(1)[name], record[name]) and record[name].shape[0] == 1
    assert Record.stack([both, both])[name].shape[0] == 1 and Record.stack([both, both])["classifier"].shape[0] == 4


def test_a_list_with_a_tensor_for_each_sample_is_refused_by_name():
    record = record_of(lambda x: {"all": x, "each": [row.outer(row) for row in x]}, normal(2, 3))
    with pytest.raises(
        errors.RecordError, match=r"layer '/each/0', call 0: float32 \(3, 3\) is of one sample, in a list"
    ):
        record.samples(0)


def test_what_all_samples_share_must_be_the_same_in_every_batch():
    shares = nn.Sequential(nn.Identity(), Gives(lambda x: x.mean(dim=0, keepdim=True)))
    records = [capture(shares, normal(4, 3, seed=seed)) for seed in (1, 2)]
    with pytest.raises(
        errors.RecordError, match=r"layer '1', call 0: outputs float32 \(1, 3\), float32 \(1, 3\) cannot"
    ):
        Record.stack(records)


def test_an_axis_of_one_entry_is_never_taken_for_the_samples():
    model = nn.Sequential(nn.Identity(), Gives(lambda x: torch.ones(1, 4, 2)))  # four samples, four of something else
    assert capture(model, normal(4, 3)).samples(2)["1"].shape == (1, 4, 2)


@pytest.mark.parametrize("index", [[], slice(9, 12), slice(None, None, -1), np.int64(1), torch.tensor([2, 0]), -1])
def test_indices_of_many_kinds(index):
    x = normal(4, 3)
    rows = {"array": lambda: x[[int(index)]], "slice": lambda: x[list(range(4)[index])], "list": lambda: x[index]}
    kind = "slice" if isinstance(index, slice) else "list" if isinstance(index, (list, torch.Tensor)) else "array"
    assert torch.equal(record_of(lambda x: x, x).samples(index)[""], rows[kind]())


@pytest.mark.parametrize("index", [4, -5, 1.0, None, True, "a", torch.tensor([True, False, True, False]), [0, 9]])
def test_indices_that_are_none(index):
    with pytest.raises(errors.OptionError, match=r"are not in a record of 4 \(0 to 3\)"):
        record_of(lambda x: x).samples(index)


@pytest.mark.parametrize(
    "cast",
    [lambda x: x.bfloat16(), lambda x: x.long(), lambda x: x > 0, lambda x: x[:, :0], lambda x: x.to(torch.complex64)],
    ids=["bfloat16", "int64", "bool", "no entries", "complex"],
)
def test_dtypes_and_tensors_without_entries(cast):
    x = normal(4, 3)
    record = record_of(cast, x)
    assert torch.equal(record.samples(slice(1, 3))[""], cast(x)[1:3])
    again = Record.stack(record.samples(sample) for sample in range(4))
    assert again.difference(record) is None


def test_an_lstm_without_a_batch_has_no_samples():
    record = capture(nn.LSTM(3, 4), normal(5, 3), [""])
    with pytest.raises(errors.RecordError, match="has no axis of the"):
        record.samples(0)


def test_stacks_keep_what_none_of_them_may_lose():
    """Keys that read alike are told apart; a part that is missing in one, and another type, are refused."""
    x = normal(4, 3)
    record = record_of(lambda x: {1: x, "1": x + 1, "a.b": x + 2, "a": {"b": x + 3}}, x)
    stacked = Record.stack([record, record])[""]
    for part, offset in ((stacked[1], 0), (stacked["1"], 1), (stacked["a.b"], 2), (stacked["a"]["b"], 3)):
        assert torch.equal(part, torch.cat([x, x]) + offset)
    for other in (lambda x: (x, x), lambda x: (x.double(), None)):
        with pytest.raises(errors.RecordError, match="cannot be stacked"):
            Record.stack([record_of(lambda x: (x, None)), record_of(other)])


def test_records_without_calls():
    assert Record.stack([Record(["a"]), Record(["a"])]).unrun == ("a",)
    with pytest.raises(errors.RecordError, match="no tensor with a batch axis"):
        Record([]).samples(0)
