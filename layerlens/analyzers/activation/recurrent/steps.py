"""One step of an LSTM, a GRU and a simple RNN, with all its states and gates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import nn

Quantities = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Weights:
    """The parameters of one direction of one layer, or of a cell, in the symbols of torch's documentation.

    Attributes:
        of_input: W_i, `(gates * unit, feature)`.
        of_hidden: W_h, `(gates * unit, hidden)`.
        input_bias: b_i, `(gates * unit,)`; None without biases.
        hidden_bias: b_h.
        projection: W_hr, `(hidden, unit)`; None where the hidden state is not projected.
    """

    of_input: torch.Tensor
    of_hidden: torch.Tensor
    input_bias: torch.Tensor | None = None
    hidden_bias: torch.Tensor | None = None
    projection: torch.Tensor | None = None


def read_weights(module: nn.Module, suffix: str, dtype: torch.dtype) -> Weights:
    """Return the parameters whose names end in `suffix` (`"_l0"`, `"_l1_reverse"`; `""` for a cell)."""

    def get(name: str) -> torch.Tensor | None:
        value = getattr(module, f"{name}{suffix}", None)
        return None if value is None else value.detach().to(dtype)

    of_input, of_hidden = get("weight_ih"), get("weight_hh")
    assert of_input is not None and of_hidden is not None
    return Weights(of_input, of_hidden, get("bias_ih"), get("bias_hh"), get("weight_hr"))


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x, weight, bias)


def from_input(weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """Compute W_i x + b_i for all steps at once, as it does not depend on the state."""
    return _linear(weights.of_input, weights.input_bias, x)


def lstm(weights: Weights, given: torch.Tensor, state: Quantities) -> Quantities:
    """Compute one step of an LSTM: c' = f c + i g, h' = o tanh(c') (Hochreiter & Schmidhuber 1997; torch.nn.LSTM).

    Args:
        weights: weights of the layer.
        given: `from_input` of this step, `(batch, 4 unit)`.
        state: `hidden` and `cell` before the step.
    """
    gates = given + _linear(weights.of_hidden, weights.hidden_bias, state["hidden"])
    i, f, g, o = gates.chunk(4, dim=-1)  # (batch, unit) each
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    cell = f * state["cell"] + i * g
    hidden = o * torch.tanh(cell)
    if weights.projection is not None:  # Sak et al. 2014
        hidden = _linear(weights.projection, None, hidden)
    return {"hidden": hidden, "cell": cell, "input_gate": i, "forget_gate": f, "cell_gate": g, "output_gate": o}


def gru(weights: Weights, given: torch.Tensor, state: Quantities) -> Quantities:
    """Compute one step of a GRU: h' = (1 - z) n + z h, reset gate after the product (Cho et al. 2014; torch.nn.GRU)."""
    ours = _linear(weights.of_hidden, weights.hidden_bias, state["hidden"])
    (r, z, n), (hr, hz, hn) = given.chunk(3, dim=-1), ours.chunk(3, dim=-1)
    r, z = torch.sigmoid(r + hr), torch.sigmoid(z + hz)
    n = torch.tanh(n + r * hn)
    return {"hidden": (1 - z) * n + z * state["hidden"], "reset_gate": r, "update_gate": z, "new_gate": n}


def rnn(
    activation: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[Weights, torch.Tensor, Quantities], Quantities]:
    """Return one step of a simple RNN: h' = tanh(W_i x + b_i + W_h h + b_h), or ReLU (Elman 1990; torch.nn.RNN)."""

    def step(weights: Weights, given: torch.Tensor, state: Quantities) -> Quantities:
        return {"hidden": activation(given + _linear(weights.of_hidden, weights.hidden_bias, state["hidden"]))}

    return step


def step_of(module: nn.Module) -> Callable[[Weights, torch.Tensor, Quantities], Quantities]:
    """Return the step function of a module."""
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        return lstm
    if isinstance(module, (nn.GRU, nn.GRUCell)):
        return gru
    return rnn(torch.relu if getattr(module, "nonlinearity", "tanh") == "relu" else torch.tanh)
