"""Results that hold a number per layer, unit, step or feature."""
