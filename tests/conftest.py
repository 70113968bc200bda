import shutil

import pytest
import torch

from layerlens.model.layers import Layers
from tests.cases import CASES, case_names
from tests.snapshot import HOOKS, hooks


@pytest.fixture(params=case_names)
def case(request):
    """Every row of tests/cases.py; some of them in the slow tests alone."""
    return CASES[request.param]


@pytest.fixture(autouse=True)
def no_hooks_left(monkeypatch):
    """No test may leave a global module hook or the grad mode changed."""
    yield
    assert torch.is_grad_enabled()
    assert not torch.nn.modules.module._global_forward_hooks


@pytest.fixture(autouse=True)
def trained_models_are_slow(request, monkeypatch):
    """A fast test that reads trained weights fails here, not only where requirements-models.txt is not installed."""
    if request.node.get_closest_marker("slow") is None:

        def refused(package, name):
            pytest.fail(f"{request.node.nodeid} reads {name} of {package}: mark it slow")

        monkeypatch.setattr("tests.real_models.file_of", refused)


@pytest.fixture
def hooks_of():
    """How many hooks of any kind stand on the modules of a model, but for those that transformers leaves by itself."""

    def count(model):
        return sum(len(hooks(module, kind)) for module in Layers(model).values() for kind in HOOKS)

    return count


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; a test that needs it fails where there is none."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "this test needs chromium: make test-slow installs it, or apt-get install chromium"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()
