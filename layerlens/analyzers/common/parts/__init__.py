"""Parts of the values of a layer: channels, heads, positions, single numbers."""
