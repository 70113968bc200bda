import pytest
import torch

from layerlens.layers import Layers
from tests.cases import CASES


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def case(request):
    """Every row of tests/cases.py."""
    return request.param


@pytest.fixture(autouse=True)
def no_hooks_left(monkeypatch):
    """No test may leave a global module hook or the grad mode changed."""
    yield
    assert torch.is_grad_enabled()
    assert not torch.nn.modules.module._global_forward_hooks


@pytest.fixture
def hooks_of():
    """How many hooks of any kind stand on the modules of a model."""

    def count(model):
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return sum(len(getattr(module, kind)) for module in Layers(model).values() for kind in kinds)

    return count
