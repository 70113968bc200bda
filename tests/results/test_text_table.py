"""Tables that print themselves fit the terminal, and lose no word."""

import pytest

from layerlens.results import Guide, GuideRow, MethodTable

CALL = "lens.saliency(x, target='zero', where='blocks', method=\"integrated_gradients\")"
COST = "50 gradients or more (steps, until it is complete)"
GUIDE = Guide((GuideRow("What mattered in a layer of this model?", CALL, COST, "a layer " * 9),), notes=("note " * 40,))
METHODS = MethodTable({"integrated_gradients": ("path", COST, "a baseline, and " * 4, "Sundararajan, Taly & Yan 2017")})


@pytest.mark.parametrize("table", [GUIDE, METHODS], ids=["guide", "methods"])
@pytest.mark.parametrize("columns", [None, 90, 170])
def test_a_table_fits_the_terminal_and_keeps_every_word(table, columns, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", str(columns))
    lines = repr(table).splitlines()
    assert max(map(len, lines)) <= (columns or 100)
    found = [word for line in lines for word in line.split()]
    for cell in (*table.cells()[1], *table.notes):
        assert all(found.count(word) >= cell.split().count(word) for word in cell.split()), cell


def test_a_narrow_terminal_breaks_no_name_of_the_first_column(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = repr(METHODS).splitlines()
    assert max(map(len, lines)) <= 60 and any(line.startswith("integrated_gradients  ") for line in lines)
