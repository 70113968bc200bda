"""Data sets as sources of samples, read in the background."""
