"""Edits of what layers return, for `run`, `capture` and `Probe`: scale, zero, replace, add, patch, mean, resample."""

from .probes.edit_site import Site
from .probes.edits import Change, Part, add, mean, patch, replace, resample, scale, zero

__all__ = ["Change", "Part", "Site", "add", "mean", "patch", "replace", "resample", "scale", "zero"]
