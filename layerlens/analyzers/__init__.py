"""Analyzers: plain functions of a model and an input that return results."""
