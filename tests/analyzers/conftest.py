"""Books are kept of samples without any relevance as of others; that they are warned of is tested by itself."""

from pathlib import Path

import pytest

FOLDERS = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if any(FOLDERS / folder in item.path.parents for folder in ("relevance", "concepts", "graph")):
            item.add_marker(pytest.mark.filterwarnings("ignore:relevance. the values"))
