"""Cost of the analyzers as ratios to a floor in the same process; run one with `python -m benchmarks.NAME`."""
