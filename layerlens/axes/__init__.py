"""Names of the axes of tensors: batch, unit and places."""
