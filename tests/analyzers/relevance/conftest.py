"""Books are kept of samples without any relevance as of others; that they are warned of is tested by itself."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:relevance. the values"))
