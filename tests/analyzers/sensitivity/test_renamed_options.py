"""Options that were renamed are accepted by their old names, with a warning, and give the same numbers."""

import pytest
import torch

import layerlens
from tests.cases import CASES


@pytest.mark.parametrize(
    ("name", "old", "new", "value", "options"),
    [
        ("jacobian", "probes", "draws", 2, {}),
        ("lipschitz", "starts", "restarts", 2, {"iterations": 2, "tolerance": 0.9}),
        ("ablate", "best", "count", 2, {"target": 0}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*not converged")
def test_old_names_of_options(name, old, new, value, options):
    model, x = CASES["mlp"].build(), CASES["mlp"].example()
    analyzer = getattr(layerlens, name)
    expected = analyzer(model, x, **{new: value}, **options)
    for run in (analyzer, lambda *args, **given: layerlens.sensitivity(*args, method=name, **given)):
        with pytest.warns(DeprecationWarning, match=rf"{name}\({old}=\) is now {new}="):
            found = run(model, x, **{old: value}, **options)
        torch.testing.assert_close(found.values, expected.values, rtol=0, atol=0)
    assert expected.settings[new] == value
