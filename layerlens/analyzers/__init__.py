"""Analyzers: plain functions of a model and an input that return results."""

from layerlens.deprecated import keep_old_names

keep_old_names(__name__)
