"""Functional values inside layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerlens import Lens, errors
from layerlens.functions import functions
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
    assert [call.index for call in record.calls("0/matmul")] == [0, 1]
    torch.testing.assert_close(record.calls("0/matmul")[0].output, scores)
    torch.testing.assert_close(record.calls("0/add")[0].output, y)  # before y += 1 and relu_ wrote into it
    torch.testing.assert_close(record.calls("0/add")[1].output, y + 1)
    torch.testing.assert_close(record["0/relu"], (y + 1).relu())
    assert "0.q/linear" in record and "1/softmax" in record


def test_listing_holds_no_memory_and_says_what_there_is():
    record = Lens(net()).functions(X)
    assert record["0/softmax"].is_meta and record["0/softmax"].shape == (2, 3, 3)
    assert "0/softmax #0: softmax float32 (2, 3, 3)" in repr(record) or "softmax" in repr(record)
    assert [call.layer for call in record.order] == [call.layer for call in Lens(net()).functions(X).order]


@pytest.mark.parametrize("names", ["softmax", "soft*", F.softmax, torch.softmax, [F.softmax, "nothing"]])
def test_functions_by_name_glob_and_themselves(names):
    record = functions(net(), X, "1", names, keep="clone")
    assert list(record) == ["1/softmax"]


def test_reductions_and_references():
    record = functions(net(), X, names="softmax", reduce=lambda output: output.amax(dim=-1))
    assert record["0/softmax"].shape == (2, 3)
    record = functions(net(), X, names="add", keep="reference")
    with pytest.raises(errors.OverwrittenError):
        _ = record.calls("0/add")[0].output


def test_what_is_not_there_is_told_with_near_names():
    with pytest.raises(errors.LayerNotFound, match=r"no function 'sofmax' was called.*softmax"):
        functions(net(), X, names="sofmax")
    with pytest.raises(errors.LayerNotFound, match="no layer '7'"):
        functions(net(), X, "7")
    with pytest.raises(errors.LayerNotFound, match="inside of the selected layers"):
        functions(net(), X, "0.q", "softmax")


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


@pytest.mark.parametrize("name", ["gpt2", "whisper", "convnext"])
def test_families(name):
    model, x, _ = family(name)
    record = functions(model, x)
    assert record.count > 10 and all(call.output is not None for call in record.order)
