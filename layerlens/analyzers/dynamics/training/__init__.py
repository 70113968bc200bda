"""Training observed: gradients, updates and drift by step."""
