import numpy as np
import pytest
import torch
from torch import nn

from layerlens import relevance
from layerlens.errors import RelevanceError


def no_grad(h):
    with torch.no_grad():
        return torch.sin(h) * 2


def written(h):
    buffer = torch.zeros_like(h)
    with torch.no_grad():
        buffer[:, :2] = h[:, :2]
    return buffer


def given_as_out(h):
    buffer = torch.zeros_like(h)
    with torch.no_grad():
        torch.sin(h, out=buffer)
    return buffer


CUTS = {
    "detach()": lambda h: h.detach() * 2,
    ".data": lambda h: h.data * 2,
    "torch.no_grad()": no_grad,
    "torch.no_grad(), into a slice": written,
    "torch.no_grad(), out=": given_as_out,
    "detach(), in parts": lambda h: torch.cat(h.detach().split(2, dim=1), dim=1),
    "numpy()": lambda h: torch.from_numpy(np.sin(h.detach().numpy())),
    "tolist()": lambda h: torch.tensor(h.tolist()) * 2,
    "item()": lambda h: h[0, 0].item(),
    "item(), in a tensor": lambda h: torch.ones(4) * h.sum().item(),
    "__dlpack__()": lambda h: torch.utils.dlpack.from_dlpack(h.detach()),
}


class PartlyCut(nn.Module):
    """Adds what `cut` makes of a hidden signal to that signal."""

    def __init__(self, cut):
        super().__init__()
        self.a, self.b, self.cut = nn.Linear(4, 4), nn.Linear(4, 3), cut

    def forward(self, x):
        h = self.a(x)
        return self.b(torch.tanh(h) + self.cut(h))


class Inside(nn.Module):
    def __init__(self, cut):
        super().__init__()
        self.cut = cut

    def forward(self, x):
        return self.cut(x)


class Equilibrium(nn.Module):
    """A fixed point z = tanh(W z + U x), found without gradients and followed by one step that has them."""

    def __init__(self):
        super().__init__()
        self.w, self.u, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 3)
        nn.init.orthogonal_(self.w.weight, 0.5)

    def step(self, z, x):
        return torch.tanh(self.w(z) + self.u(x))

    def forward(self, x):
        z = torch.zeros(len(x), 4)
        with torch.no_grad():
            for _ in range(30):
                z = self.step(z, x)
        return self.head(self.step(z, x))


@pytest.fixture
def x():
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CUTS)
def test_every_cut_is_named_and_what_it_adds_is_booked(name, x):
    torch.manual_seed(0)
    model = nn.Sequential(PartlyCut(CUTS[name]), nn.Linear(3, 3))
    way = name.split(",")[0].replace("(", r"\(").replace(")", r"\)")
    with pytest.warns(UserWarning, match=rf"detaches a signal in '0', so relevance is cut there \(by {way}\)"):
        result = relevance(model, x, target=0)
    assert float(result.ledger.relative.max()) < 1e-5
    added = sum(entry.amount for entry in result.ledger.entries if entry.source.startswith("constant"))
    h, scale = model[0].a(x).detach(), (model[1].weight @ model[0].b.weight)[0].detach()
    torch.testing.assert_close(added.float(), (torch.zeros(2, 4) + CUTS[name](h)) @ scale)


@pytest.mark.parametrize("name", CUTS)
def test_a_score_that_is_cut_whole_names_the_place(name, x):
    model = nn.Sequential(nn.Linear(4, 4), Inside(lambda h: torch.zeros_like(h) + CUTS[name](h)), nn.Linear(4, 3))
    with pytest.raises(RelevanceError, match=r"does not depend on the input .*detached on the way \(.* in layer '1'"):
        relevance(model, x, target=0)


def test_a_fixed_point_without_gradients_is_named(x):
    torch.manual_seed(0)
    model = Equilibrium()
    with pytest.warns(UserWarning, match=r"in the model itself, so relevance is cut there \(by torch.no_grad\(\)\)"):
        result = relevance(model, x, target=0)
    assert float(result.ledger.relative.max()) < 1e-5


def test_constants_and_numbers_that_only_leave_are_no_cuts(x):
    class Logs(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.log = nn.Linear(4, 3), []

        def forward(self, x):
            h = self.a(x)
            self.log.append(h.mean().item())
            with torch.no_grad():
                shift = self.a.bias * 2  # of the weights, not of a signal
            return h + shift + torch.tensor([0.5, 1.0, 2.0])

    result = relevance(Logs(), x, target=0)
    assert float(result.ledger.relative.max()) < 1e-5
