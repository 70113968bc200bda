"""Functions of torch that are followed as one operation: replaced during a trace alone, for its thread alone."""

from threading import Thread
from typing import Any

import pytest
import torch
from torch import nn

from layerlens.axes.followed import followed
from layerlens.axes.tracing import tracing
from layerlens.inputs.inputs import as_inputs


class Elsewhere(nn.Module):
    """Multiplies with einsum, in its own thread and in another one, and fails if that is wanted."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        constant, found = torch.ones(2, 3), list[Any]()
        other = Thread(target=lambda: found.extend([torch.einsum("ij,ij->i", constant, constant), tracing()]))
        other.start()
        other.join()
        assert torch.equal(found[0], torch.tensor([3.0, 3.0]))
        assert found[1] is False
        if self.fails:
            raise ValueError("as wanted")
        return torch.einsum("bi,bj->bij", x, x)


def functions():
    return torch.lstm, torch.gru, torch._VF.lstm, torch._VF.einsum, torch._VF._pad_packed_sequence, set(vars(torch._VF))


@pytest.mark.parametrize("fails", [False, True])
def test_functions_are_restored(fails):
    before, inputs = functions(), as_inputs(torch.randn(2, 4))
    if fails:
        with pytest.raises(ValueError, match="as wanted"):
            followed(Elsewhere(fails=True), inputs)
    else:
        found = followed(Elsewhere(), inputs)
        assert [axis.name for axis in found.output[""]] == ["batch", "feature", "feature"]
        assert found.unknown == {}
    assert functions() == before
    assert not tracing()


def test_a_function_of_torch_called_by_its_own_name():
    class Own(nn.LSTM):
        def forward(self, x):
            state = torch.zeros(1, x.shape[0], self.hidden_size)
            weights = self._flat_weights
            return torch.lstm(x, (state, state), weights, True, 1, 0.0, False, False, True)

    site = followed(Own(4, 3), as_inputs(torch.randn(2, 5, 4))).site("")
    assert [axis.name for axis in site.outputs["output"]] == ["batch", "time", "unit"]
