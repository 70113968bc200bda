"""What is written is read again bit for bit, and a run that was stopped is resumed to what it would have been."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import layerlens
from layerlens import Record, over
from layerlens.errors import LayerLensError, SampleError

from .networks import assume, for_networks

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

RESULTS = {
    "relevance": lambda model, x, target: layerlens.relevance(model, x, target=target, layers=None, parameters="*"),
    "gradient": lambda model, x, target: layerlens.saliency(model, x, target=target, method="gradient"),
    "integrated_gradients": lambda model, x, target: layerlens.saliency(
        model, x, target=target, method="integrated_gradients", steps=3, tolerance=1e9
    ),
    "grad_cam": lambda model, x, target: layerlens.saliency(model, x, target=target, method="grad_cam"),
    "layers": lambda model, x, target: layerlens.layers(model, x),
    "jacobian": lambda model, x, target: layerlens.jacobian(model, x, draws=2),
    "noise_response": lambda model, x, target: layerlens.noise_response(
        model, x, levels=(0.5,), draws=2, target=target
    ),
}


def same_bits(one, other, where=""):
    """Assert that two values are equal in type, in structure and bit for bit."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and one.shape == other.shape, where
        assert one.numpy(force=True).tobytes() == other.numpy(force=True).tobytes(), where
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes(), where
    elif dataclasses.is_dataclass(one):
        assert type(one) is type(other), where
        for field in dataclasses.fields(one):
            same_bits(getattr(one, field.name), getattr(other, field.name), f"{where}.{field.name}")
    elif isinstance(one, Mapping):
        assert list(one) == list(other), where
        for name in one:
            same_bits(one[name], other[name], f"{where}[{name!r}]")
    elif isinstance(one, (list, tuple)):
        assert type(one) is type(other) and len(one) == len(other), where
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            same_bits(a, b, f"{where}[{place}]")
    else:
        assert type(one) is type(other) and (one == other or one != one), f"{where}: {one!r} and {other!r}"


@for_networks(40, name=list(RESULTS))
def test_results_are_read_again(network, name):
    try:
        result = RESULTS[name](network.model(), network.x(), network.target)
    except LayerLensError:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = result.save(Path(folder) / "result.npz")
        same_bits(result, type(result).load(path), name)


@for_networks(40)
def test_records_are_read_again(network):
    record = layerlens.capture(network.model(), network.x())
    with tempfile.TemporaryDirectory() as folder:
        again = Record.load(record.save(Path(folder) / "record.safetensors"))
    assert again.difference(record) is None and list(again) == list(record)
    for one, other in zip(record.order, again.order, strict=True):
        assert (one.layer, one.index, one.type) == (other.layer, other.index, other.type)
        same_bits(one.output, other.output, one.layer)
        for name in one.tensors:
            same_bits(one.tensors[name], other.tensors[name], f"{one.layer}/{name}")
    for layer in record:
        for call in range(len(record.calls(layer))):
            try:
                axes = record.axes(layer, call=call)
            except LayerLensError:
                continue
            assert again.axes(layer, call=call) == axes


class Rows(torch.utils.data.Dataset):
    """Samples, one of which cannot be read until it is repaired."""

    def __init__(self, x, broken=None):
        self.x, self.broken = x, broken

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        if row == self.broken:
            raise OSError(f"row {row} is cut off")
        return self.x[row]


@for_networks(
    15,
    start="numbers",
    broken=range(0, 11),
    batch_size=range(1, 5),
    shard_size=range(1, 6),
    analysis=["capture", "saliency", "relevance"],
)
def test_a_run_that_was_stopped_is_resumed(network, broken, batch_size, shard_size, analysis):
    """Stopped by a row that cannot be read, at any row and with any cut of the data."""
    model, x = network.model(), network.x(11)
    options = {} if analysis == "capture" else {"target": network.target}
    if analysis == "saliency":
        options["method"] = "gradient"

    def run(data, folder):
        run = over(model, data, store=folder, batch_size=batch_size, shard_size=shard_size, version="1")
        return getattr(run, analysis)(**options)

    with tempfile.TemporaryDirectory() as folder:
        try:
            whole = run(Rows(x), Path(folder) / "whole")
        except SampleError as error:  # the axis of one sample cannot be distinguished from others of one entry
            assume("has no axis of the 1 samples" not in str(error))
            raise
        with pytest.raises(SampleError, match=f"row {broken} is cut off"):
            run(Rows(x, broken), Path(folder) / "stopped")
        kept = sorted((Path(folder) / "stopped").rglob("*.safetensors"))
        assert len(kept) == broken // shard_size
        resumed = run(Rows(x), Path(folder) / "stopped")
        assert list(resumed) == list(whole) and resumed.complete
        assert resumed.ids.tolist() == whole.ids.tolist() == list(range(len(x)))
        for column in whole:
            same_bits(whole[column].tensor(), resumed[column].tensor(), column)
