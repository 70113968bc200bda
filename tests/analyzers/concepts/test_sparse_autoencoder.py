"""Training a sparse autoencoder on the units of a layer."""

import pytest
import torch
from torch import nn

from layerlens import Basis, Lens, SparseAutoencoder, basis
from layerlens.errors import InputError, OptionError


def planted():
    """A layer of 8 units that are one of 12 directions, times a size, and the directions."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(12, 8, generator=draw), dim=1)
    which, size = torch.randint(12, (400,), generator=draw), 1 + torch.rand(400, 1, generator=draw)
    return nn.Sequential(nn.Identity(), nn.Linear(8, 2)), size * directions[which], directions


def test_planted_directions_are_found_by_features_one_at_a_time():
    net, x, directions = planted()
    state = torch.get_rng_state()
    with torch.no_grad():
        found = basis(net, x, "0", method="sae", features=24, active=2, steps=150, progress=False)
    assert torch.equal(torch.get_rng_state(), state) and not any(one.grad is not None for one in net.parameters())
    assert isinstance(found.coder, SparseAutoencoder) and not any(p.grad is not None for p in found.coder.parameters())
    codes = found.codes(x).detach()
    assert int((codes != 0).sum(dim=1).max()) <= 2 and bool((codes >= 0).all())
    left = (x - x.mean(dim=0)).square().sum()
    torch.testing.assert_close(found.explained, 1 - float(found.error(x).detach().square().sum() / left))
    assert found.explained > 0.95
    shown = torch.nn.functional.normalize(found.coder.decoder.detach(), dim=1) @ directions.T
    assert float(shown.amax(dim=0).mean()) > 0.9
    twice = [basis(net, x, "0", method="sae", features=24, active=2, steps=3).coder.decoder for _ in range(2)]
    torch.testing.assert_close(twice[0], twice[1], rtol=0, atol=0)
    rows = Lens(net).relevance(x[:5], target=0, layers=found).bases["0"]
    torch.testing.assert_close(rows.checks["per place"].sum(dim=0), rows.checks["layer"])
    kept = SparseAutoencoder(8, 24, active=2)
    kept.load_state_dict(found.coder.state_dict())
    torch.testing.assert_close(Basis("0", kept).codes(x), found.codes(x))
    torch.testing.assert_close(found.direction(3).detach(), (kept.decoder[3] * kept.scale).detach())


def test_first_places_are_left_out_of_a_fit():
    net = nn.Sequential(nn.Identity(), nn.Conv1d(3, 2, 1))
    x = torch.randn(30, 3, 5, generator=torch.Generator().manual_seed(0))
    x[:, :, 0] += 1000.0
    options = {"features": 3, "places": 4, "progress": False}
    pytest.importorskip("sklearn")
    without = basis(net, x, "0", skip=1, **options).codes(x[:, :, 1:])
    torch.testing.assert_close(without, basis(net, x[:, :, 1:], "0", **options).codes(x[:, :, 1:]))
    assert abs(float(basis(net, x, "0", features=1, places=5).explained) - 1) < 1e-3
    with pytest.raises(InputError, match="no places but the first 5"):
        basis(net, x, "0", skip=5, **options)


def test_options_that_do_not_fit_an_autoencoder():
    net, x, _ = planted()
    with pytest.raises(OptionError, match="active=30, and there are features=24"):
        basis(net, x, "0", method="sae", features=24, active=30)
    with pytest.raises(OptionError, match="steps must be a whole number"):
        basis(net, x, "0", method="sae", steps=0)
