"""Data sets: how an analyzer's options and the data set's own are joined, and labels that are given beside it."""

import numpy as np
import pytest
import torch
from torch import nn

from layerlens import Data, geometry, linear_probe
from layerlens.errors import InputError, OptionError
from layerlens.inputs.batches import per_sample
from layerlens.signatures import old_names
from tests.cases import normal


def test_a_data_set_keeps_its_own_options_and_takes_the_others():
    data = Data.of(Data(torch.ones(5, 2), batch_size=2), [0, 1, 0, 1, 1], batch_size=4, batched=None, progress=False)
    assert (data.batch_size, data.progress, data.read) == (2, False, None)
    assert [(one.start, one.labels) for one in data.batches()] == [(0, [0, 1]), (2, [0, 1]), (4, [1])]
    assert Data.of(torch.ones(5, 2), batch_size=3).batch_size == 3


def test_labels_replace_those_in_the_data():
    pairs = [(torch.ones(2), 7), (torch.ones(2), 3)]
    assert [one.labels for one in Data(pairs).batches()] == [[7, 3]]
    assert [one.labels for one in Data(pairs, labels=np.array([0.5, 1.5])).batches()] == [[0.5, 1.5]]


@pytest.mark.parametrize("given", [{"labels": [1]}, {"labels": [1, 2, 3, 4]}, {"labels": "abc"}, {"labels": [[1]] * 3}])
def test_labels_are_one_per_sample(given):
    with pytest.raises(InputError, match=r"reading: .*per sample"):
        list(Data(torch.ones(3, 2), **given).batches(doing="reading"))


def test_labels_given_twice_are_refused():
    with pytest.raises(OptionError, match=r"labels are given twice: as labels= and in Data"):
        Data.of(Data(torch.ones(3, 2), labels=[0, 1, 0]), [0, 1, 1])


def test_one_name_or_number_per_sample():
    assert per_sample("groups", torch.tensor([1, 2]), 2) == [1, 2]
    with pytest.raises(InputError, match="groups must hold one name or number per sample, 3 in all; got 2 of them"):
        per_sample("groups", ["a", "b"], 3)


@pytest.mark.filterwarnings("ignore:linear_probe. 40 samples are few")
def test_analyzers_take_a_data_set_as_data():
    model, x, labels = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), normal(40, 3), [0, 1] * 20
    for run in (geometry, lambda model, *data, **options: linear_probe(model, *data, untrained=False, **options)):
        first = run(model, x, labels=labels, batch_size=7)
        second = run(model, Data(x, labels, batch_size=7))
        assert first.values.equal(second.values) and first.settings == second.settings


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_old_names_of_options_still_work():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), normal(40, 3)
    with pytest.warns(DeprecationWarning, match=r"geometry\(most=\) is now max_samples="):
        old = geometry(model, x, most=20)
    assert old.values.equal(geometry(model, x, max_samples=20).values) and old.settings["max_samples"] == 20
    assert old_names(linear_probe) == {"most": "max_samples", "shuffles": "permutations"}
