"""Features that perturbation methods switch off, and the values that replace them."""
