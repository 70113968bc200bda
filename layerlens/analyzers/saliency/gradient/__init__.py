"""Methods that read one gradient, or average noisy ones."""
