"""Look inside any PyTorch model: what each layer holds, what mattered in the input, and how the score flows."""
