"""What holds for all tests: random weights, also those of the examples in docstrings, are the same in every run."""

import doctest
import gc
import inspect
from collections.abc import Generator

import pytest

from layerlens.model.borrowed import seed_torch

_from_module = doctest.DocTestFinder._from_module
doctest.DocTestFinder._from_module = lambda self, module, thing: _from_module(self, module, inspect.unwrap(thing))
"""doctest looks for the module of a decorated function, such as a public one, in the decorator's file."""

gc.disable()
"""While thousands of tests are collected nothing is garbage: looking for it took two fifths of that time."""

MISSING = ("could not import ", "no Chromium on this machine")
"""How the reason of a skip begins when something is missing that `make` installs."""


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Tests and examples may draw numbers; a failure must come back when it is looked for."""
    seed_torch(0)


def pytest_collection_finish() -> None:
    """Collect garbage from now on, but not among the modules and tests, which stay until the end."""
    gc.freeze()
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say what can be asked for on the command line."""
    parser.addoption("--make-pictures", action="store_true", help="rewrite the pictures that figures are compared with")
    parser.addoption("--every-package", action="store_true", help="fail where a missing package would skip a test")


def fail_if_missing(report: pytest.TestReport | pytest.CollectReport, config: pytest.Config) -> None:
    """Turn a skip for want of a package into a failure, if `--every-package` is given."""
    if report.skipped and config.getoption("--every-package") and isinstance(report.longrepr, tuple):
        path, line, reason = report.longrepr
        if reason.removeprefix("Skipped: ").startswith(MISSING):
            report.outcome, report.longrepr = "failed", f"{path}:{line}: skipped despite --every-package: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Look at the skips of tests."""
    report = yield
    fail_if_missing(report, item.config)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Look at the skips of whole modules."""
    report = yield
    fail_if_missing(report, collector.config)
    return report
