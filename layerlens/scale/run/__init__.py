"""One run over a data set: its life cycle and its work loop."""
