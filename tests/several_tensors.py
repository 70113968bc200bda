"""Models whose layer `rnn`, `attn` or `block` returns several tensors, and pairs of them that compute one function."""

import dataclasses
from typing import NamedTuple

import torch
from torch import nn
from transformers.utils import ModelOutput


class Last(nn.Module):
    """Reads the last step of a recurrent layer, of its output or of its state h_n."""

    def __init__(self, kind=nn.LSTM, *, state, layers=1, bidirectional=False, batch_first=True):
        super().__init__()
        self.state, self.batch_first = state, batch_first
        self.rnn = kind(3, 5, layers, batch_first=batch_first, bidirectional=bidirectional)
        self.fc = nn.Linear(10 if bidirectional else 5, 2)

    def forward(self, x):
        output, states = self.rnn(x if self.batch_first else x.transpose(0, 1))
        if self.state:
            h = states[0] if isinstance(states, tuple) else states
            ends = h[-2:] if self.rnn.bidirectional else h[-1:]
            return self.fc(torch.cat(list(ends), dim=-1))
        output = output if self.batch_first else output.transpose(0, 1)
        if self.rnn.bidirectional:  # the last step of one direction, the first of the other
            return self.fc(torch.cat([output[:, -1, :5], output[:, 0, 5:]], dim=-1))
        return self.fc(output[:, -1])


def pair(kind=nn.LSTM, **options):
    """Two models with the same weights and the same outputs: one reads h_n, the other the output."""
    torch.manual_seed(0)
    by_state = Last(kind, state=True, **options).double().eval()
    by_output = Last(kind, state=False, **options).double().eval()
    by_output.load_state_dict(by_state.state_dict())
    return by_state, by_output


class Fields(NamedTuple):
    """A named tuple of two tensors."""

    first: torch.Tensor
    second: torch.Tensor


@dataclasses.dataclass
class Pair:
    """A data class of two tensors."""

    first: torch.Tensor
    second: torch.Tensor


@dataclasses.dataclass
class Output(ModelOutput):
    """An output of transformers."""

    first: torch.Tensor | None = None
    second: torch.Tensor | None = None


PACKED = {
    "tuple": (lambda a, b: (a, b), ("0", "1")),
    "list": (lambda a, b: [a, b], ("0", "1")),
    "dict": (lambda a, b: {"first": a, "second": b}, ("first", "second")),
    "namedtuple": (Fields, ("first", "second")),
    "dataclass": (Pair, ("first", "second")),
    "model output": (lambda a, b: Output(first=a, second=b), ("first", "second")),
    "nested": (lambda a, b: (None, {"inner": (a, b)}), ("1/inner/0", "1/inner/1")),
}


class Block(nn.Module):
    """Makes two tensors of one input, packed in some way."""

    def __init__(self, packed):
        super().__init__()
        self.packed = packed
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x):
        return PACKED[self.packed][0](self.a(x).tanh(), self.b(x).tanh())


class TwoHeads(nn.Module):
    """Adds up what two layers read of the two tensors of a block."""

    def __init__(self, packed):
        super().__init__()
        self.block, self.one, self.two = Block(packed), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        a, b = (tensor for tensor in flat(self.block(x)) if tensor is not None)
        return self.one(a) + self.two(b)


def flat(value):
    """The tensors in a value, in order."""
    if value is None or isinstance(value, torch.Tensor):
        return [value]
    if dataclasses.is_dataclass(value) and not isinstance(value, dict):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for part in value for tensor in flat(part)]


def two_heads(packed):
    """The model in eval mode, float64, always the same."""
    torch.manual_seed(1)
    return TwoHeads(packed).double().eval()
