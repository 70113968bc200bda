"""Probes: hooks that record every call of a layer, and edits of what layers return."""
