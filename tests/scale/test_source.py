"""Data of every kind, by sample number: the same samples whatever holds them."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from layerlens.errors import InputError, OptionError
from layerlens.inputs.inputs import as_inputs
from layerlens.scale.data.as_source import as_source, batch_of
from layerlens.scale.data.source import BadSample
from layerlens.scale.store.plan import Plan

from .helpers import Broken, pictures

X, Y = pictures(11), torch.arange(11) % 4
DICTS: Any = [{"x": X[k]} for k in range(11)]


class Pairs(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index], int(Y[index])


class Flow(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y.tolist(), strict=True))


def texts_as_inputs(x):
    return as_inputs(torch.tensor([[float(len(x))]]) if isinstance(x, str) else x)


def collate(items):
    return torch.stack([x for x, _ in items]), [label for _, label in items]


def numpy_labels(items):
    return torch.stack([x for x, _ in items]), [np.int64(label) for _, label in items]


DATA = {
    "tensor": (X, False),
    "array": (X.numpy(), False),
    "dataset": (Pairs(), True),
    "list": ([X[k] for k in range(11)], False),
    "list of pairs": ([(X[k], int(Y[k])) for k in range(11)], True),
    "tensor dataset": (TensorDataset(X, Y), True),
    "loader": (DataLoader(Pairs(), batch_size=4), True),
    "loader of single samples": (DataLoader(Pairs(), batch_size=None), True),
    "loader with its own collate": (DataLoader(Pairs(), batch_size=3, collate_fn=collate), True),
    "loader with labels of numpy": (DataLoader(Pairs(), batch_size=3, collate_fn=numpy_labels), True),
    "stream": (Flow(), True),
    "loader of a stream": (DataLoader(Flow(), batch_size=4), True),
    "loader of single samples of a stream": (DataLoader(Flow(), batch_size=None), True),
    "loader of dicts": (DataLoader(DICTS, batch_size=4), False),
    "generator": ((X[k] for k in range(11)), False),
}


def read(source, spans):
    """The samples and labels of some spans, by number."""
    rows, labels = {}, {}
    for batch in source.batches(spans):
        for row in range(batch.inputs.batch):
            rows[batch.start + row] = next(iter(batch.inputs.tensors().values()))[row]
            labels[batch.start + row] = None if batch.labels is None else batch.labels[row]
    return rows, labels


@pytest.mark.parametrize("name", DATA)
def test_every_kind_gives_the_same_samples(name):
    data, labelled = DATA[name]
    source = as_source(data, as_inputs)
    plan = Plan(source.count, 5, 2)
    spans = [span for number in range(3) for span in plan.batches(number)]
    rows, labels = read(source, spans)
    assert list(rows) == list(range(11))
    assert all(torch.equal(rows[index], X[index]) for index in range(11))
    assert labels == {index: int(Y[index]) if labelled else None for index in range(11)}


@pytest.mark.parametrize("name", [name for name in DATA if name != "generator"])
def test_a_later_part_is_read_by_itself(name):
    source = as_source(DATA[name][0], as_inputs)
    rows, _ = read(source, [range(5, 7), range(9, 11)])
    assert list(rows) == [5, 6, 9, 10] and torch.equal(rows[9], X[9])


def test_dicts_keep_what_is_no_row():
    data = {"x": X, "scale": torch.tensor(2.0), "name": "run"}
    (batch, *_) = as_source(data, as_inputs).batches([range(4, 6)])
    assert torch.equal(batch.inputs.kwargs["x"], X[4:6]) and batch.inputs.kwargs["scale"] == 2


def test_texts_are_read_by_the_reader_and_shapes_do_not_mix():
    source = as_source(["a", "bcd"], texts_as_inputs)
    (batch,) = source.batches([range(0, 2)])
    assert batch.inputs.args[0].tolist() == [[1.0], [3.0]]
    odd = as_source([torch.ones(2), torch.ones(2), torch.ones(5)], as_inputs)
    assert [batch.inputs.batch for batch in odd.batches([range(0, 3)])] == [2, 1]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_named_and_its_neighbours_are_read(workers):
    source = as_source(Broken(unreadable=(1, 4), nan=(2,)), as_inputs, workers)
    batches = list(source.batches([range(0, 4), range(4, 8)]))
    bad = {batch.index: batch.reason for batch in batches if isinstance(batch, BadSample)}
    assert set(bad) == {1, 2, 4} and "cut off" in bad[1] and "NaN" in bad[2]
    good = [
        index for p in batches if not isinstance(p, BadSample) for index in range(p.start, p.start + p.inputs.batch)
    ]
    assert good == [0, 3, 5, 6, 7]


def test_a_bad_row_of_a_tensor_or_loader_is_found():
    data = X.clone()
    data[3] = torch.nan
    for source in (as_source(data, as_inputs), as_source(DataLoader(TensorDataset(data), batch_size=4), as_inputs)):
        batches = list(source.batches([range(2, 6)]))
        assert [batch.index for batch in batches if isinstance(batch, BadSample)] == [3]
        assert sorted(batch.start for batch in batches if not isinstance(batch, BadSample)) == [2, 4, 5]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataLoader(Pairs(), batch_size=4, shuffle=True), "shuffles"),
        (DataLoader(Pairs(), batch_size=None, shuffle=True), "shuffles"),
        (torch.zeros(0, 3), "is empty"),
        (torch.tensor(1.0), "single number"),
        ({"a": torch.zeros(2), "b": torch.zeros(3)}, r"must have one length, got \[2, 3\]"),
        ("text", "several samples"),
        (7, "data is int"),
    ],
)
def test_what_is_no_data_set_is_refused(data, message):
    with pytest.raises(InputError, match=message):
        as_source(data, as_inputs)


def test_workers_are_a_count():
    with pytest.raises(OptionError, match="workers"):
        as_source(X, as_inputs, -1)


def test_data_is_told_from_other_data():
    mine = as_source(X, as_inputs).identity()
    assert mine == as_source(X.clone(), as_inputs).identity()
    assert mine != as_source(X + 1, as_inputs).identity() and mine != as_source(X[:10], as_inputs).identity()
    assert as_source(np.asarray(X), as_inputs).identity()["samples"] == 11


class Words(IterableDataset):
    def __iter__(self):
        return iter(["a", "bcd", "ef"])


def test_a_loader_of_a_stream_gives_its_texts_and_notes_its_bad_samples():
    (batch,) = as_source(DataLoader(Words(), batch_size=2), texts_as_inputs).batches([range(0, 3)])
    assert batch.inputs.args[0].tolist() == [[1.0], [3.0], [2.0]]

    class Spoilt(Flow):
        def __iter__(self):
            return iter([X[0], X[1] * torch.nan, X[2]])

    batches = list(as_source(DataLoader(Spoilt(), batch_size=2), as_inputs).batches([range(0, 3)]))
    assert [batch.index for batch in batches if isinstance(batch, BadSample)] == [1] and len(batches) == 3


def test_processes_that_read_leave_the_generator_of_the_user_alone():
    before = torch.random.get_rng_state()
    list(as_source(X, as_inputs, 1).batches([range(0, 4)]))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_loader_brings_its_batch_size_and_reads_several_at_once_where_it_can():
    class Several(Pairs):
        def __getitem__(self, index):
            raise AssertionError("one by one")

        def __getitems__(self, indices):
            return [(X[index], int(Y[index])) for index in indices]

    loader = DataLoader(Several(), batch_size=3)
    (batch,) = as_source(loader, as_inputs).batches([range(3, 6)])
    assert torch.equal(batch.inputs.args[0], X[3:6]) and batch_of(loader) == 3 and batch_of(X) == 16
