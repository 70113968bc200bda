"""Results that hold a table, a comparison or a ranking of methods."""
