"""Routes of models whose structure depends on the input."""

import pytest
import torch
from torch import nn

from layerlens import Lens, compare_routes, errors, route
from tests.cases import CASES
from tests.snapshot import Snapshot


class Repeats(nn.Module):
    """Runs its step as often as the first number of the sample says."""

    def __init__(self):
        super().__init__()
        self.step, self.out = nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x):
        for _ in range(int(x[:, 0].max())):
            x = self.step(x)
        return self.out(x)


class Experts(nn.Module):
    """Sends each row to one of three experts, and skips those with nothing to do."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))

    def forward(self, x):
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = x[:, 0] == number
            if bool(mine.any()):
                out[mine] = expert(x[mine])
        return out


def test_each_sample_has_its_own_route_though_the_batch_has_one():
    x = torch.tensor([[1.0, 0], [3.0, 0], [0.0, 0], [1.0, 5.0]])
    model = Repeats()
    before = Snapshot(model, x)
    routes = route(model, x)
    before.check()
    assert routes.calls == (("step", "out"), ("step",) * 3 + ("out",), ("out",), ("step", "out"))
    assert routes.layers(1) == {"step": 3, "out": 1}
    assert list(routes.groups.values()) == [[0, 3], [1], [2]]
    with pytest.raises(errors.OptionError, match=r"no sample 4 among 4 \(0 to 3\)"):
        routes.layers(4)
    assert "samples: 4, routes: 3" in repr(routes)
    assert routes.to_pandas()["step"].tolist() == [1, 3, 0, 1]


def test_experts_that_did_not_run_are_not_on_the_route():
    routes = route(Experts(), torch.tensor([[2.0, 1], [0.0, 1]]))
    assert routes.calls == (("experts.2",), ("experts.0",))


def test_early_exits_stop_where_the_sample_is_sure():
    case = CASES["early_exit"]
    model, x = case.build(), case.example()
    for sample, calls in enumerate(route(model, x, "blocks.*").calls):
        with torch.no_grad():
            hidden, blocks = model.stem(x[sample : sample + 1]), 0
            while blocks < 5 and not bool(model.fc(hidden).softmax(1).max() > model.sure):
                hidden, blocks = hidden + model.blocks[blocks](hidden), blocks + 1
        assert calls == tuple(f"blocks.{number}" for number in range(blocks))


def test_where_routes_part():
    lens = Lens(Repeats())
    short, long = torch.tensor([[1.0, 0]]), torch.tensor([[3.0, 0]])
    found = lens.compare_routes(short, long)
    assert (found.only_first, found.only_second, found.counts) == ((), (), {"step": (1.0, 3.0)})
    assert (found.parting, found.after, found.same) == (1, "step", False)
    assert lens.compare_routes(short, lens.route(short)).same
    nothing = lens.compare_routes(torch.zeros(1, 2), long)
    assert nothing.only_second == ("step",) and nothing.parting == 0 and "at the start" in repr(nothing)
    both = torch.cat([short, long])
    assert lens.compare_routes(both, both.flip(0)).same  # groups of the same routes do not part
    assert lens.compare_routes(both, both.repeat(3, 1)).same
    mixed = lens.compare_routes(both, short)
    assert mixed.counts == {"step": (2.0, 1.0)}


def test_routes_of_two_models_are_not_compared():
    one, two = route(nn.Sequential(nn.ReLU()), torch.ones(1, 2)), route(Repeats(), torch.ones(1, 2))
    with pytest.raises(errors.OptionError, match="of a Sequential and of a Repeats"):
        compare_routes(one, two)
    with pytest.raises(errors.OptionError, match="takes two results of route"):
        compare_routes(one, "two")
