"""What holds for all tests: random weights, also those of the examples in docstrings, are the same in every run."""

import pytest
import torch


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Tests and examples may draw numbers; a failure must come back when it is looked for."""
    torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say what can be asked for on the command line."""
    parser.addoption(
        "--make-pictures", action="store_true", help="write the pictures that figures are compared with anew"
    )
