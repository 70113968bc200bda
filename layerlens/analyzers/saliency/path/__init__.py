"""Methods that integrate gradients along a path from a baseline."""
