"""Local sensitivity: Jacobians, Lipschitz bounds and the response to noise."""
