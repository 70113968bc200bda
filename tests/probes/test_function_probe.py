"""Functional values inside layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerlens import FunctionProbe, Lens, errors, functions
from tests.families import family
from tests.snapshot import Snapshot


class Block(nn.Module):
    """Attention by hand, with a residual and functions in place."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        scores = self.q(x) @ self.k(x).transpose(1, 2)
        weights = F.dropout(F.softmax(scores, dim=-1), 0.1, self.training)
        y = x + weights @ self.v(x)
        y += 1
        return y.relu_()


def net():
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block()).eval()


X = torch.linspace(-1, 1, 24).reshape(2, 3, 4)


def test_the_values_between_the_layers_are_those_of_the_code():
    model = net()
    before = Snapshot(model, X)
    record = functions(model, X, keep="clone")
    before.check()
    block = model[0]
    with torch.no_grad():
        scores = block.q(X) @ block.k(X).transpose(1, 2)
        weights = scores.softmax(-1)
        y = X + weights @ block.v(X)
    torch.testing.assert_close(record["0/softmax"], weights)
    assert [call.layer for call in record.order if "matmul" in call.layer][:2] == ["0/matmul#0", "0/matmul#1"]
    torch.testing.assert_close(record["0/matmul#0"], scores)
    torch.testing.assert_close(record["0/add#0"], y)  # before y += 1 and relu_ wrote into it
    torch.testing.assert_close(record["0/add#1"], y + 1)
    with pytest.raises(errors.RecordError, match=r"'0/add' is not in this record.*0/add#"):
        _ = record["0/add"]  # which of the two?
    torch.testing.assert_close(record["0/relu"], (y + 1).relu())
    assert "0.q/linear" in record and "1/softmax" in record


def test_listing_holds_no_memory_and_says_what_there_is():
    record = Lens(net()).functions(X)
    assert record["0/softmax"].is_meta and record["0/softmax"].shape == (2, 3, 3)
    assert "0.q/linear#0 #0: linear float32 (2, 3, 4)" in repr(record) and "0.0 MiB" in repr(record)
    assert [call.layer for call in record.order] == [call.layer for call in Lens(net()).functions(X).order]


@pytest.mark.parametrize("names", ["softmax", "soft*", F.softmax, torch.softmax, [F.softmax, "soft*"]])
def test_functions_by_name_glob_and_themselves(names):
    record = functions(net(), X, "1", names, keep="clone")
    assert list(record) == ["1/softmax#0"]


def test_reductions_and_references():
    record = functions(net(), X, functions="softmax", reduce=lambda output: output.amax(dim=-1))
    assert record["0/softmax"].shape == (2, 3)
    record = functions(net(), X, functions="add", keep="reference")
    with pytest.raises(errors.OverwrittenError):
        _ = record["0/add#0"]


def test_what_is_not_there_is_told_with_near_names():
    with pytest.raises(errors.LayerNotFound, match=r"no function 'sofmax' was called.*softmax"):
        functions(net(), X, functions="sofmax")
    with pytest.raises(errors.LayerNotFound, match="no function 'conv2d' was called"):  # one of several
        functions(net(), X, functions=["softmax", "conv2d"])
    with pytest.raises(errors.LayerNotFound, match="no layer '7'"):
        functions(net(), X, "7")
    with pytest.raises(errors.LayerNotFound, match="inside of the selected layers"):
        functions(net(), X, "0.q", "softmax")
    with pytest.raises(errors.LayerNotFound, match=r"was called inside of the selected layers\. Called: none"):
        functions(nn.Sequential(nn.Sequential(nn.Linear(4, 4))), X, "0")  # a layer that only calls others
    with pytest.raises(errors.OptionError, match="keep policy"):
        functions(net(), X, keep="all")


def test_an_error_leaves_nothing():
    class Fails(nn.Module):
        def forward(self, x):
            raise ValueError("here")

    model = nn.Sequential(nn.Linear(4, 4), Fails())
    before = Snapshot(model, X)
    with pytest.raises(ValueError, match="here"):
        functions(model, X)
    before.check()
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.overrides._get_current_function_mode()


def test_a_probe_records_the_runs_of_its_block_in_the_models_own_mode():
    model = net().train()
    with FunctionProbe(model, "0", ["softmax", "dropout"], keep="clone") as record:
        model(X)
        model(X)
    assert len(record.calls("0/softmax")) == 2 and not record.partial
    assert (record.calls("0/dropout#0")[0].output == 0).any()  # of training mode
    assert not record.calls("0/softmax")[0].output.requires_grad
    assert not torch.nn.modules.module._global_forward_hooks
    with pytest.raises(errors.LayerNotFound, match="no function 'tanh'"), FunctionProbe(model, functions="tanh"):
        model(X)
    with FunctionProbe(model, functions="tanh") as record:
        pass  # nothing ran, so nothing is missed
    probe = FunctionProbe(model)
    with pytest.raises(errors.OptionError, match="already attached"), probe, probe:
        pass


def test_a_probe_left_by_an_error_holds_what_there_was_so_far():
    class Fails(nn.Module):
        def forward(self, x):
            raise ValueError(str(x + 1))

    probe = FunctionProbe(nn.Sequential(nn.Linear(4, 4), Fails()))
    with pytest.raises(ValueError), probe as record:
        probe._model(X)
    assert record.partial and list(record) == ["0/linear#0", "1/add#0"]


def test_a_layer_that_runs_twice_has_two_calls_of_each_name():
    layer = nn.Linear(4, 4)
    record = functions(nn.Sequential(layer, nn.Tanh(), layer), X, keep="clone")
    assert [call.output.shape for call in record.calls("0/linear")] == [X.shape] * 2
    assert [(call.layer, call.index) for call in record.order] == [
        ("0/linear#0", 0),
        ("1/tanh#0", 0),
        ("0/linear#0", 1),
    ]


def test_axes_are_followed_whatever_the_class_is_called():
    class Heads(nn.Module):
        def forward(self, x):
            return x.unsqueeze(1) * 2

    Heads.__name__ = "HeadsConv2d"
    record = functions(nn.Sequential(nn.Linear(4, 4), Heads()), X)
    assert record.calls("0/linear")[0].axes == ("batch", "time", "feature")
    assert record.calls("1/mul")[0].axes == ("batch", "1", "time", "feature")
    model = net()
    with FunctionProbe(model) as record:
        model(X)
    with pytest.raises(errors.AxesUnknown, match=r"records of lens.functions\(x\)"):
        _ = record.order[0].site


def test_what_a_forward_computes_outside_of_the_layers_is_the_models_own():
    lens = Lens(nn.Linear(4, 4), forward=lambda model, x: model(x * 2).exp())
    assert list(lens.functions(X)) == ["/mul#0", "/linear#0", "/exp#0"]


def test_writing_by_index_is_seen():
    class Writes(nn.Module):
        def forward(self, x):
            y = x * 1
            y[:, 0] = 7
            return y

    assert (functions(Writes(), X, keep="clone")["/setitem"][:, 0] == 7).all()


@pytest.mark.filterwarnings("ignore:.*is compiled")
def test_a_compiled_model_runs_as_written():
    model = torch.compile(net(), backend="eager")
    with torch.no_grad():
        model(X)
    assert any(name.endswith("0/softmax#0") for name in functions(model, X))
    with FunctionProbe(model) as record:
        model(X)
    assert any(name.endswith("0/softmax#0") for name in record)


def test_records_of_functions_can_be_cut_and_written(tmp_path):
    record = functions(net(), X, "0", "softmax", keep="clone")
    assert torch.equal(record.samples([1])["0/softmax"], record["0/softmax"][1:])
    again = type(record).load(record.save(tmp_path / "a.safetensors"))
    assert torch.equal(again["0/softmax#0"], record["0/softmax"])


@pytest.mark.parametrize("name", ["gpt2", "whisper", "convnext"])
def test_families(name):
    model, x, _ = family(name)
    record = functions(model, x)
    assert record.count > 10 and all(call.output is not None for call in record.order)
